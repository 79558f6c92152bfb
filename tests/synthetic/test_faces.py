from __future__ import annotations

import csv
import hashlib
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from margrave.data import FaceImages
from margrave.synthetic import degradation as face_degradation
from margrave.synthetic import faces as synthetic
from margrave.synthetic.faces import SyntheticFaces, long_tailed_sizes
from margrave.synthetic.factors import FaceIdentity, from_uniforms
from margrave.synthetic.relief import relief


def digests(faces: SyntheticFaces, indices) -> dict[int, str]:
    return {i: hashlib.sha256(faces.read(i).tobytes()).hexdigest() for i in indices}


def mean_colors(faces: SyntheticFaces) -> np.ndarray:
    return np.stack([faces.read(i).mean(axis=(0, 1)) for i in range(len(faces))])


def best_accuracy(similarity: np.ndarray, same: np.ndarray) -> float:
    """Of the best threshold, which favors the method."""
    hits = same[np.argsort(-similarity)].astype(float)
    right = np.cumsum(hits) + (~same).sum() - np.cumsum(1 - hits)
    return float(right.max() / len(same))


def test_is_a_set_of_face_images():
    faces = SyntheticFaces(num_identities=3, images_per_identity=2, first_identity=7)
    assert isinstance(faces, FaceImages)
    assert len(faces) == 6
    assert faces.labels.dtype == np.int64
    assert faces.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert list(faces.class_names) == ["person_000007", "person_000008", "person_000009"]
    assert faces.name(3) == "person_000008/0001"
    image = faces.read(3)
    assert image.shape == (112, 112, 3)
    assert image.dtype == np.uint8
    for index in (-1, 6):
        with pytest.raises(IndexError, match=r"0\.\.5"):
            faces.read(index)


def test_same_bytes_in_any_instance_and_order():
    def make(seed: int) -> SyntheticFaces:
        return SyntheticFaces(num_identities=8, images_per_identity=3, seed=seed, degraded=0.7)

    forwards = digests(make(5), range(24))
    faces = make(5)
    state = pickle.dumps(np.random.get_state())
    assert digests(faces, reversed(range(24))) == forwards
    assert pickle.dumps(np.random.get_state()) == state
    assert digests(pickle.loads(pickle.dumps(faces)), range(24)) == forwards
    assert len(set(forwards.values())) == 24
    assert not set(digests(make(6), range(24)).values()) & set(forwards.values())


def test_an_identity_is_the_same_in_every_data_set():
    large = SyntheticFaces(num_identities=6, images_per_identity=4)
    small = SyntheticFaces(num_identities=1, images_per_identity=2, first_identity=4)
    assert np.array_equal(large.read(17), small.read(1))
    assert large.truth(17) == small.truth(1)
    assert np.array_equal(large.quality[16:18], small.quality)


def test_size_scales_the_same_scene():
    large = SyntheticFaces(num_identities=4, images_per_identity=1, image_size=224, degraded=0.0)
    small = SyntheticFaces(num_identities=4, images_per_identity=1, degraded=0.0)
    for index in range(4):
        shrunk = cv2.resize(large.read(index), (112, 112), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(float) - small.read(index)).mean() < 6


def test_truth_agrees_with_the_vectors_and_the_settings():
    faces = SyntheticFaces(num_identities=100, images_per_identity=20, degraded=0.5)
    truths = [faces.truth(i) for i in range(len(faces))]
    assert np.allclose(faces.quality, [truth.quality for truth in truths], rtol=0, atol=0)
    assert [truth.identity for truth in truths] == faces.true_labels.tolist()
    assert abs((faces.quality < 1).mean() - 0.5) < 0.05
    assert faces.quality.min() >= 0
    for truth in truths:
        clean = (truth.blur, truth.resolution, truth.noise, truth.occlusion, truth.compression)
        assert (truth.quality == 1) == (clean == (0, 112, 0, 0, 100))
    for column in ("blur", "noise", "occlusion"):
        assert 0.05 < np.mean([getattr(truth, column) > 0 for truth in truths]) < 0.4
    assert {truth.glasses for truth in truths} == {"none", "clear", "dark"}
    yaw = np.array([truth.pose.yaw for truth in truths])
    assert abs(yaw.mean()) < 2
    assert 20 < np.abs(yaw).max() <= 42


def test_nuisance_and_degradation_fade_to_nothing():
    calm = SyntheticFaces(num_identities=2, images_per_identity=3, nuisance=0.0, degradation=0.0)
    assert calm.quality.tolist() == [1.0] * 6
    assert calm.truth(0).pose == (0, 0, 0)
    assert np.array_equal(calm.read(0), calm.read(2))
    wild = SyntheticFaces(num_identities=2, images_per_identity=3, nuisance=1.0, degraded=0.0)
    assert np.abs(wild.read(0).astype(float) - wild.read(2)).mean() > 15


@pytest.mark.parametrize("kind", face_degradation.DEGRADATIONS)
def test_more_of_a_degradation_is_further_from_the_original(kind):
    image = SyntheticFaces(num_identities=1, images_per_identity=1, degraded=0.0).read(0)
    column = face_degradation.DEGRADATIONS.index(kind)
    distances, qualities = [], []
    for level in (0.0, 0.3, 0.6, 1.0):
        severity = np.zeros(5)
        severity[column] = level
        amount = face_degradation.in_physical_units(severity, 112)
        spoiled = face_degradation.degrade(
            image, amount, np.array([0.7, 0.2, 0.1, 0.3]), np.random.default_rng(1)
        )
        distances.append(np.abs(spoiled.astype(float) - image).mean())
        qualities.append(face_degradation.quality_of(severity))
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.parametrize("kind", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("side", [0.2, 0.8])
def test_an_occluder_covers_about_its_share(kind, side):
    gray = np.full((112, 112, 3), 128, np.uint8)
    for share in (0.2, 0.5):
        covered = [
            (face_degradation.occlude(gray, share, kind, side, np.random.default_rng(seed)) != 128)
            for seed in range(8)
        ]
        assert 0.4 * share < np.mean(covered) < 1.6 * share


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 300), mean=st.integers(2, 60), exponent=st.floats(0.0, 3.0))
def test_long_tail_keeps_its_law(count, mean, exponent):
    sizes = long_tailed_sizes(count * mean, count, exponent)
    assert sizes.sum() == count * mean
    assert sizes.min() >= 2
    assert (np.diff(sizes) <= 0).all()


def test_long_tailed_classes():
    faces = SyntheticFaces(num_identities=50, images_per_identity=10, class_sizes="long_tailed")
    sizes = np.bincount(faces.labels)
    assert len(faces) == 500
    assert sizes.max() > 80 > 4 > np.median(sizes) - 2
    assert sizes.tolist() != sorted(sizes, reverse=True)
    steady = SyntheticFaces(num_identities=50, images_per_identity=10)
    place = int(np.flatnonzero(faces.true_labels == 9)[1])
    assert np.array_equal(faces.read(place), steady.read(91))


def test_label_noise_is_exact_and_leaves_the_truth():
    faces = SyntheticFaces(num_identities=20, images_per_identity=10, label_noise=0.25)
    wrong = faces.labels != faces.true_labels
    assert wrong.sum() == 50
    assert faces.labels.min() >= 0
    assert faces.labels.max() < 20
    index = int(np.flatnonzero(wrong)[0])
    clean = SyntheticFaces(num_identities=20, images_per_identity=10)
    assert np.array_equal(faces.read(index), clean.read(index))
    assert faces.truth(index).identity == faces.true_labels[index]


def test_identities_differ_and_images_of_one_are_alike():
    faces = SyntheticFaces(num_identities=30, images_per_identity=2, nuisance=0.3, degraded=0.0)
    gray = np.stack([faces.read(i).mean(axis=2).ravel() for i in range(60)])
    gray = (gray - gray.mean(0)) / np.linalg.norm(gray - gray.mean(0), axis=1, keepdims=True)
    same = (gray[::2] * gray[1::2]).sum(1)
    different = (gray[::2] * np.roll(gray[1::2], 1, axis=0)).sum(1)
    assert same.mean() > different.mean() + 0.2


def test_color_alone_and_pixels_alone_do_not_separate_identities():
    identities, each = 120, 2
    faces = SyntheticFaces(num_identities=identities, images_per_identity=each, first_identity=500)
    images = np.stack([faces.read(i) for i in range(len(faces))]).astype(np.float32)
    first, second = images[::2], images[1::2]
    same = np.repeat([True, False], identities)

    def accuracy_of(similarity):
        pairs = [similarity(first, second), similarity(first, np.roll(second, 1, axis=0))]
        return best_accuracy(np.concatenate(pairs), same)

    def color(left, right):
        return -np.linalg.norm(left.mean(axis=(1, 2)) - right.mean(axis=(1, 2)), axis=1)

    middle = images.mean(axis=(0, 3)).ravel()

    def pixels(left, right):
        left, right = (side.mean(axis=3).reshape(identities, -1) - middle for side in (left, right))
        scale = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        return (left * right).sum(1) / scale

    assert accuracy_of(color) < 0.68
    assert 0.54 < accuracy_of(pixels) < 0.76


def test_every_extreme_of_an_identity_can_be_rendered():
    rng = np.random.default_rng(0)
    faces = SyntheticFaces(num_identities=1, images_per_identity=1)
    person = synthetic.appearance_of(0, 0)
    capture = faces._image_factors(0, 0)[0]
    for _ in range(60):
        corner = rng.integers(0, 2, synthetic.NUM_IDENTITY_FACTORS) * 0.999
        factors = from_uniforms(FaceIdentity, corner)
        extreme = person._replace(factors=factors, height=relief(factors))
        assert synthetic.render_face(extreme, capture, 64, 1.0, rng).std() > 5


def test_write(tmp_path):
    faces = SyntheticFaces(num_identities=3, images_per_identity=2, image_size=64, label_noise=0.3)
    seen = []
    folder = faces.write(
        tmp_path / "faces", progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (6, 6)
    with (folder / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for index, row in enumerate(rows):
        assert row["file"].split("/")[0] == faces.class_names[faces.labels[index]]
        assert float(row["quality"]) == faces.quality[index]
        assert float(row["pose_yaw"]) == faces.truth(index).pose.yaw
        pixels = cv2.imread(str(folder / row["file"]), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(pixels, faces.read(index))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not an empty folder"):
        faces.write(folder)
    with pytest.raises(ValueError, match="file_format = 'gif'"):
        faces.write(tmp_path / "other", file_format="gif")  # type: ignore[arg-type]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    faces = SyntheticFaces(num_identities=2, images_per_identity=2, image_size=32)
    with pytest.raises(KeyboardInterrupt):
        faces.write(tmp_path / "faces", file_format="jpg", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_identities", 0),
        ("images_per_identity", 0),
        ("class_sizes", "even"),
        ("tail_exponent", -1.0),
        ("image_size", 16),
        ("seed", -1),
        ("first_identity", -3),
        ("nuisance", 1.5),
        ("degraded", float("nan")),
        ("degradation", 2.0),
        ("label_noise", -0.1),
    ],
)
def test_a_bad_setting_is_named_with_its_remedy(setting, value):
    with pytest.raises(ValueError, match=f"{setting} = {value!r}.*must be "):
        SyntheticFaces(**{setting: value})


def test_settings_that_contradict_each_other():
    with pytest.raises(ValueError, match="second identity"):
        SyntheticFaces(num_identities=1, label_noise=0.5)
    with pytest.raises(ValueError, match=r"images_per_identity = 1 .* between 2 and"):
        SyntheticFaces(images_per_identity=1, class_sizes="long_tailed")
