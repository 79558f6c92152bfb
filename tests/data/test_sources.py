"""Every source of images keeps the contract, and `open_source` recognizes what it should."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from margrave.data import (
    SOURCES,
    FaceImages,
    ImageFolder,
    ImageSubset,
    PairList,
    ReadableImages,
    TrainingImages,
    decode_image,
    detect_source,
    open_source,
    pack_pairs,
    pack_records,
    pack_shards,
)
from margrave.synthetic import SyntheticFaces

ROOT = Path(__file__).parents[2]
FACES = SyntheticFaces(num_identities=3, images_per_identity=2, image_size=32)


class Least:
    """The least that a source from outside implements."""

    labels = np.array([0, 0, 1])
    class_names = ("Ann", "Bo")

    def __len__(self) -> int:
        return 3

    def name(self, index: int) -> str:
        return f"picture {index}"

    def read(self, index: int) -> np.ndarray:
        return np.full((32, 32, 3), index, np.uint8)


class Unlabeled:
    """A source from outside without labels."""

    def __len__(self) -> int:
        return 3

    name, read = Least.name, Least.read


def _pairs(folder: Path) -> str:
    pairs = PairList(np.array([0, 1]), np.array([1, 2]), np.array([True, False]), 1)
    pack_pairs(FACES, pairs, folder / "pairs.bin", 32)
    return str(folder / "pairs.bin")


def _shards(folder: Path) -> str:
    pack_shards(FACES, folder / "shards", 32)
    return str(folder / "shards")


def _records(folder: Path) -> str:
    pack_records(FACES, folder / "records", 32)
    return str(folder / "records")


def _file(folder: Path) -> str:
    FACES.write(folder / "faces")
    return str(next((folder / "faces").glob("*/*.png")))


def _npz(folder: Path) -> dict[str, Any]:
    names = [FACES.class_names[label] for label in FACES.labels]
    images = np.stack([FACES.read(index) for index in range(len(FACES))])
    np.savez(folder / "faces.npz", images=images, names=names)
    return {"kind": "my_source:NpzImages", "file": str(folder / "faces.npz")}


PLACES: dict[str, Callable[[Path], Any]] = {
    "files": _file,
    "folder": lambda folder: str(FACES.write(folder / "faces")),
    "pairs_bin": _pairs,
    "part": lambda folder: {
        "kind": "part",
        "images": {"kind": "synthetic", "num_identities": 10, "image_size": 32},
        "part": "validation",
    },
    "records": _records,
    "shards": _shards,
    "synthetic": lambda folder: {"kind": "synthetic", "num_identities": 3, "image_size": 32},
}
"""What lies in a folder for each kind of source."""
OTHERS: dict[str, Callable[[Path], Any]] = {
    "array": lambda folder: np.zeros((3, 32, 32, 3), np.uint8),
    "list of arrays": lambda folder: [FACES.read(0), FACES.read(1)],
    "list of paths": lambda folder: [_file(folder)],
    "least": lambda folder: Least(),
    "unlabeled": lambda folder: Unlabeled(),
    "least, by name": lambda folder: {"kind": f"{__name__}:Least"},
    "subset": lambda folder: ImageSubset(FACES, np.array([1, 4, 5])),
    "npz": _npz,
}


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example and this file as modules that an import path names."""
    shutil.copy(ROOT / "examples" / "my_source.py", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_every_kind_of_source_is_tested() -> None:
    assert set(PLACES) == set(SOURCES)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("kind", [*PLACES, *OTHERS])
def test_a_source_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    images = open_source({**PLACES, **OTHERS}[kind](tmp_path))
    assert isinstance(images, ReadableImages) and open_source(images) is images
    count = len(images)
    assert count > 0
    for index in range(count):
        pixels = images.read(index)
        assert pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3)
        assert isinstance(images.name(index), str) and isinstance(images.path(index), str)
        content = images.read_bytes(index)
        assert content is None or np.array_equal(decode_image(content, "it"), pixels)
    assert len({images.path(index) for index in range(count)}) == count
    if images.labels is None:
        assert not images.class_names
        with pytest.raises(ValueError, match="no labels"):
            open_source(images, labeled=True)
    else:
        assert images.labels.dtype == np.int64 and images.labels.shape == (count,)
        assert set(images.labels.tolist()) <= set(range(len(images.class_names)))
        assert all(isinstance(name, str) for name in images.class_names)
    assert images.quality is None or images.quality.shape == (count,)
    assert images.content_digest is None or len(images.content_digest) == 64
    assert dict(images.left_out) == {} and images.loose_images == 0
    assert dict(images.other_formats) == {}
    assert images.pieces is None or (images.pieces[-1] == count and images.window > 0)
    images.prefetch([0])
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again.read(count - 1), images.read(count - 1))


@pytest.mark.parametrize("kind", [kind for kind in PLACES if kind not in ("synthetic", "part")])
def test_what_lies_at_a_path_is_detected(kind: str, tmp_path: Path) -> None:
    place = PLACES[kind](tmp_path)
    spec = detect_source(place)
    assert spec["kind"] == kind
    assert SOURCES.validate(spec)["kind"] == kind
    assert len(open_source(Path(place))) == len(open_source(spec))


def test_content_is_detected_whatever_a_file_is_called(tmp_path: Path) -> None:
    Path(_pairs(tmp_path)).rename(tmp_path / "lfw")
    Path(_records(tmp_path), "train.rec").rename(tmp_path / "train")
    assert detect_source(tmp_path / "lfw")["kind"] == "pairs_bin"
    assert detect_source(tmp_path / "train")["kind"] == "records"


def test_addresses_are_shards() -> None:
    for address in ("s3://faces/train", "https://example.org/train.rec", "gs://a/b.bin"):
        assert detect_source(address) == {"kind": "shards", "root": address}


def test_a_folder_with_labels_and_without(tmp_path: Path) -> None:
    folder = FACES.write(tmp_path / "faces")
    assert isinstance(open_source(folder), ImageFolder)
    loose = open_source(folder, labeled=False)
    assert loose.labels is None and len(loose) == len(FACES)
    person = folder / FACES.class_names[0]
    assert open_source(person).labels is None and len(open_source(person)) == 2
    with pytest.raises(ValueError, match="2 images but no folder"):
        open_source(person, labeled=True)
    with pytest.raises(ValueError, match="no labels"):
        open_source(_pairs(tmp_path), labeled=True)


@pytest.mark.parametrize("labeled", [None, False, True])
def test_empty_places_are_refused(tmp_path: Path, labeled: bool | None) -> None:
    with pytest.raises(ValueError, match="no images"):
        open_source(tmp_path, labeled=labeled)
    with pytest.raises(ValueError, match=r"no such file or folder|contain no images"):
        open_source(tmp_path / "nowhere", labeled=labeled)


def test_labels_of_any_kind_are_numbered_in_order_of_appearance(tmp_path: Path) -> None:
    pixels = np.stack([FACES.read(index) for index in range(4)])
    for source in (pixels, list(pixels)):
        images = open_source(source, labels=["Bo", "Ann", "Bo", "Cy"])
        assert images.labels is not None and images.labels.tolist() == [0, 1, 0, 2]
        assert images.class_names == ("Bo", "Ann", "Cy")
    assert open_source(pixels, labels=np.array([7, 3, 3, 7])).class_names == ("7", "3")
    assert open_source(pixels, labels=[("a", 1), "b", "b", 2.5]).class_names[0] == "('a', 1)"
    path = _file(tmp_path)
    files = open_source([path, Path(path)], labels=["x", "y"], labeled=True)
    assert files.labels.tolist() == [0, 1] and files.path(0) == path


def test_arrays_are_known_by_their_pixels() -> None:
    pixels = np.stack([FACES.read(index) for index in range(2)])
    digest = open_source(pixels).content_digest
    assert open_source(list(pixels)).content_digest == digest
    assert open_source(pixels[::-1]).content_digest != digest


@pytest.mark.parametrize(
    ("source", "labels", "message"),
    [
        (np.zeros((32, 32, 3), np.uint8), None, r"shape \(32, 32, 3\)"),
        (np.zeros((2, 32, 32, 3)), None, "image 0 has dtype float64"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)], None, "image 1 has dtype"),
        ([], None, "list of images is empty"),
        (["a.png", np.zeros((4, 4, 3), np.uint8)], None, "ndarray, str"),
        (np.zeros((2, 4, 4, 3), np.uint8), ["Ann"], "1 labels for 2 images"),
        (np.zeros((2, 4, 4, 3), np.uint8), ["Ann", None], r"labels\[1\] is None"),
        ("faces", ["Ann"], "labels can be given only with"),
        (object(), None, "lacks __len__, name, read"),
    ],
)  # fmt: skip
def test_refusals_name_what_is_wrong(source: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(source, labels=labels)


def test_a_source_from_outside_gets_the_rest_of_the_contract() -> None:
    class WithMore(Least):
        left_out = {"Cy": 1}  # noqa: RUF012
        quality = np.array([0.1, 0.5, 1.0])

        def path(self, index: int) -> str:
            return f"{index}.png"

    images = open_source(WithMore(), labeled=True)
    assert images.path(1) == "1.png" and images.name(1) == "picture 1"
    assert images.left_out == {"Cy": 1} and images.quality is WithMore.quality
    part = ImageSubset(WithMore(), np.array([2]))
    assert part.class_names == ("Bo",) and part.path(0) == "2.png"
    assert part.quality is not None and part.quality.tolist() == [1.0]
    batch = TrainingImages(Least(), size=32).__getitems__([(0, 2), (0, 0)])
    assert batch.labels.tolist() == [1, 0] and int(batch.images[0].max()) == 2


@pytest.mark.parametrize("label", [2, -1])
def test_labels_must_be_indices_of_class_names(label: int) -> None:
    class Wrong(Least):
        labels = np.array([0, label, 1])

    with pytest.raises(ValueError, match=rf"Wrong: labels\[1\] is {label}, but there are 2 class"):
        open_source(Wrong())


@pytest.mark.usefixtures("importable")
def test_the_example_opens_an_npz_file(tmp_path: Path) -> None:
    spec = _npz(tmp_path) | {"minimum_images": 2}
    images = open_source(spec, labeled=True)
    assert isinstance(images, FaceImages)
    assert images.class_names == FACES.class_names
    assert np.array_equal(images.labels, FACES.labels)
    assert np.array_equal(images.read(3), FACES.read(3))
    with pytest.raises(ValueError, match="no setting 'minimum'"):
        open_source({**spec, "minimum": 1})
    assert len((ROOT / "examples" / "my_source.py").read_text().splitlines()) <= 40


def test_records_are_embedded_under_their_names(tmp_path: Path) -> None:
    """Their ``path`` was once the file's, so that features of records could not be made."""
    images = open_source(_records(tmp_path))
    assert images.path(0) == images.name(0) != images.path(1)
