"""Features that are written once, whole, and refused when they are not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from margrave import backbones
from margrave.data import ArrayImages
from margrave.inference import (
    ChosenRows,
    Embedder,
    FeatureStore,
    FusedRows,
    embed_features,
    embed_to_store,
    feature_store,
    store_files,
)
from margrave.models import ModelCard
from margrave.synthetic import SyntheticFaces

BACKBONE = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 8, 8],
    "embedding_size": 8,
    "image_size": 32,
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "IMAGES_PER_BLOCK", 7)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    card = ModelCard(backbone=BACKBONE, image_size=32)
    return Embedder(backbones.create(BACKBONE).eval(), card, batch_size=5)


@pytest.fixture(scope="module")
def faces() -> SyntheticFaces:
    return SyntheticFaces(num_identities=6, images_per_identity=5, image_size=32)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_holds_what_the_model_gives(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    embed_to_store(embedder, faces, tmp_path / "features", model="tiny", source="synthetic")
    store = FeatureStore(tmp_path / "features")
    plain, mirrored = embedder.embed_images(faces)
    np.testing.assert_allclose(store.embeddings, plain, rtol=1e-4, atol=1e-5)
    assert store.flipped is not None
    np.testing.assert_allclose(store.flipped, mirrored, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(store.norms, np.linalg.norm(plain, axis=1), rtol=1e-4)
    np.testing.assert_allclose(store.rows[3:9], (plain + mirrored)[3:9], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(store.labels, faces.labels)
    assert store.identities == tuple(faces.class_names) and len(store) == 30
    assert store.name(4) == faces.name(4)
    np.testing.assert_array_equal(store.rows_of([faces.name(9), faces.name(2)]), [9, 2])
    assert store.card == embedder.card and store.description["model"] == "tiny"
    # Plain NumPy files, which anything can read.
    assert np.load(tmp_path / "features" / "embeddings.npy").shape == (30, 8)


def test_killed_after_any_block_goes_on_to_the_same_bytes(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    embed_to_store(embedder, faces, tmp_path / "whole")

    class Killed(Exception):
        pass

    for killed_at in (7, 14, 28):

        def kill(done: int, killed_at: int = killed_at) -> None:
            if done == killed_at:
                raise Killed

        folder = tmp_path / f"killed{killed_at}"
        with pytest.raises(Killed):
            embed_to_store(embedder, faces, folder, after_block=kill)
        with pytest.raises(ValueError, match=f"features of {killed_at} of 30 images"):
            FeatureStore(folder)
        # A line that was being written when the power went.
        with open(folder / "blocks.jsonl", "a") as file:
            file.write('{"start": 14, "st')
        done: list[int] = []
        embed_to_store(
            embedder, faces, folder, progress=lambda count, _, done=done: done.append(count)
        )
        assert done[0] == killed_at
        assert _contents(folder) == _contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["embeddings", "flipped", "norms", "names", "labels"])
def test_a_flipped_byte_is_refused(
    name: str, embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    embed_to_store(embedder, faces, folder)
    path = folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        FeatureStore(folder)
    with pytest.raises(ValueError, match="delete the folder"):
        embed_to_store(embedder, faces, folder)
    if name == "embeddings":
        with pytest.raises(ValueError, match="rows 28 to 29"):
            FeatureStore(folder)


@pytest.mark.parametrize("name", ["features.json", "blocks.jsonl", "embeddings.npy"])
@pytest.mark.parametrize("harm", ["missing", "cut", "garbage"])
def test_damaged_files_are_named(
    name: str, harm: str, embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    embed_to_store(embedder, faces, folder, flips=False)
    path = folder / name
    content = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if harm == "cut" else b"\xff{}[1\n" * 20)
    with pytest.raises(ValueError, match="features"):
        FeatureStore(folder)
    if (name, harm) == ("blocks.jsonl", "cut"):
        # What lines are left count; the rest is embedded anew.
        embed_to_store(embedder, faces, folder, flips=False)
        assert path.read_bytes() == content
        return
    with pytest.raises(ValueError, match=r"delete the folder|choose an empty folder"):
        embed_to_store(embedder, faces, folder, flips=False)


def test_features_that_cannot_be_compared(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    others = SyntheticFaces(num_identities=3, first_identity=50, image_size=32)
    store = embed_to_store(embedder, faces, tmp_path / "features")
    store.check_comparable(embed_to_store(embedder, others, tmp_path / "others"))
    with pytest.raises(ValueError, match="features of the same images"):
        store.check_comparable(FeatureStore(tmp_path / "features"))
    # Other pictures under the same names.
    namesake = SyntheticFaces(num_identities=6, first_identity=70, image_size=32)
    namesake.labels, namesake.name = faces.labels, faces.name
    store.check_comparable(embed_to_store(embedder, namesake, tmp_path / "namesake"))
    plain = embed_to_store(embedder, others, tmp_path / "plain", flips=False)
    with pytest.raises(ValueError, match=r"different flips \(True and False\)"):
        store.check_comparable(plain)
    card = replace(embedder.card, mean=0.4)
    otherwise = embed_to_store(replace(embedder, card=card), others, tmp_path / "otherwise")
    with pytest.raises(ValueError, match=r"different mean \(0.5 and 0.4\)"):
        store.check_comparable(otherwise)


def test_another_run_does_not_mix_in(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    embed_to_store(embedder, faces, tmp_path / "features")
    with pytest.raises(ValueError, match="differ in flips"):
        embed_to_store(embedder, faces, tmp_path / "features", flips=False)
    torch.manual_seed(1)
    other = Embedder(backbones.create(BACKBONE).eval(), embedder.card)
    with pytest.raises(ValueError, match="differ in weights"):
        embed_to_store(other, faces, tmp_path / "features")
    fewer = SyntheticFaces(num_identities=5, images_per_identity=5, image_size=32)
    with pytest.raises(ValueError, match=r"differ in count \(30, now 25\), images"):
        embed_to_store(embedder, fewer, tmp_path / "features")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_my_love.txt").touch()
    with pytest.raises(ValueError, match="other files"):
        embed_to_store(embedder, faces, tmp_path / "letters")


class Broken:
    """Faces some of which cannot be read."""

    def __init__(self, faces: SyntheticFaces, bad: set[int]) -> None:
        self.faces, self.bad = faces, bad
        self.labels, self.class_names = faces.labels, faces.class_names

    def __len__(self) -> int:
        return len(self.faces)

    def name(self, index: int) -> str:
        return self.faces.name(index)

    def read(self, index: int) -> np.ndarray:
        if index in self.bad:
            raise ValueError(f"{self.name(index)} is truncated")
        return self.faces.read(index)


def test_unreadable_images_are_kept_apart(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    images = Broken(faces, {3, 20})
    with pytest.raises(ValueError, match="2 images cannot be read, more than maximum_unreadable"):
        embed_to_store(embedder, images, tmp_path / "features", maximum_unreadable=1)
    embed_to_store(embedder, images, tmp_path / "features", maximum_unreadable=2)
    store = FeatureStore(tmp_path / "features")
    assert set(store.unreadable) == {3, 20} and not store.embeddings[3].any()
    with pytest.raises(ValueError, match="truncated"):
        store.rows_of([faces.name(20)])
    with pytest.raises(ValueError, match=r"the list lists 1 image .* nobody"):
        store.rows_of(["nobody"])


def test_chosen_rows_are_read_in_any_order() -> None:
    rows = np.arange(50_000, dtype=np.float32).reshape(-1, 2)
    generator = np.random.default_rng(0)
    for chosen in (np.arange(5, 40), generator.permutation(25_000)[:300], np.array([24_999, 0, 0])):
        view = ChosenRows(rows, chosen)
        assert view.shape == (len(chosen), 2)
        np.testing.assert_array_equal(view[0 : len(chosen)], rows[chosen])
        np.testing.assert_array_equal(view[1:3], rows[chosen[1:3]])


@pytest.mark.parametrize("step", [slice(None, None, 2), slice(3, 0, -2), slice(3, 1), slice(1, 3)])
def test_fused_rows_are_sliced_as_arrays_are(step: slice, tmp_path: Path) -> None:
    plain, flipped = np.arange(8, dtype=np.float32).reshape(2, 4, 1)
    np.save(tmp_path / "plain.npy", plain)
    for array in (plain, np.load(tmp_path / "plain.npy", mmap_mode="r")):
        rows = FusedRows(array, flipped)
        np.testing.assert_array_equal(rows[step], (plain + flipped)[step])
        assert torch.from_numpy(rows[step]).shape == rows[step].shape


class Slanted(torch.nn.Module):
    """Gives NaN for images that are brighter on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left, right = images.mean(dim=(1, 2)).chunk(2, dim=1)
        return self.scale * (right.mean(1) - left.mean(1)).sqrt()[:, None]


def test_a_flipped_embedding_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    images = ArrayImages(np.stack([image] * 9))
    embedder = Embedder(Slanted(), ModelCard(backbone=BACKBONE, image_size=32), batch_size=5)
    with pytest.raises(ValueError, match=r"image 0 \(flipped\) is infinite or NaN"):
        embed_features(embedder, images)
    with pytest.raises(ValueError, match=r"image 0 \(flipped\) is infinite or NaN"):
        embed_to_store(embedder, images, tmp_path / "features")
    assert np.isfinite(embed_features(embedder, images, flips=False).embeddings).all()


def test_the_header_is_readable_by_people(
    embedder: Embedder, faces: SyntheticFaces, tmp_path: Path
) -> None:
    embed_to_store(embedder, faces, tmp_path / "features", flips=False)
    result = json.loads((tmp_path / "features" / "features.json").read_text())
    assert result["count"] == 30 and result["width"] == 8 and result["flips"] is False
    assert result["card"]["mean"] == 0.5 and result["fit"] == "crop"


@pytest.fixture(scope="module")
def small_store(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "features"
    embed_to_store(
        embedder, SyntheticFaces(num_identities=2, images_per_identity=3, image_size=32), folder
    )
    return folder


@pytest.fixture
def store_folder(small_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_store, tmp_path / "features")


def test_the_header_is_covered_by_its_checksum(store_folder: Path) -> None:
    path = store_folder / "features.json"
    content = path.read_text()
    path.write_text(content.replace('"color_order": "rgb"', '"color_order": "bgr"'))
    assert path.read_text() != content
    with pytest.raises(ValueError, match=r"features.json is damaged: its checksum"):
        FeatureStore(store_folder)
    # What people do to the text alone changes nothing.
    description = json.loads(content)
    path.write_text(json.dumps(dict(reversed(description.items()))))
    assert FeatureStore(store_folder).description["count"] == 6


def test_headers_of_0_1_open_and_say_that_they_are_not_covered(store_folder: Path) -> None:
    path = store_folder / "features.json"
    digest = FeatureStore(store_folder).digest
    description = json.loads(path.read_text())
    del description["checksum"]
    path.write_text(json.dumps(description, indent=1))
    with pytest.warns(UserWarning, match="has no checksum because Margrave 0.1 wrote it"):
        assert FeatureStore(store_folder).digest == digest


def write_header(folder: Path, **changes: object) -> None:
    """A header with its right checksum, as somebody hostile would write it."""
    description = json.loads((folder / "features.json").read_text()) | changes
    description = {key: value for key, value in description.items() if value is not None}
    description.pop("checksum")
    content = {**description, "checksum": store_files.checksum(description)}
    (folder / "features.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changes",
    [
        {"count": True}, {"count": -1}, {"count": 0}, {"count": 10**30}, {"count": 7},
        {"count": 5}, {"width": -8}, {"width": 10**12}, {"width": None}, {"images": {}},
        {"images": {"digest": 3, "source": ""}}, {"identities": [1, 2]}, {"card": {}},
        {"card": {"backbone": [[]], "image_size": "x", "mean": {}}}, {"card": None},
        {"flips": None}, {"format_version": 99},
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(changes: dict[str, object], store_folder: Path) -> None:
    write_header(store_folder, **changes)
    with pytest.raises(ValueError, match=r"features"):
        FeatureStore(store_folder)


@pytest.mark.parametrize("name", ["features.json", "blocks.jsonl"])
def test_deep_json_is_refused(name: str, store_folder: Path) -> None:
    for depth in (200, 100_000):
        (store_folder / name).write_text("[" * depth + "]" * depth + "\n")
        with pytest.raises(ValueError, match=name):
            FeatureStore(store_folder)


@pytest.mark.parametrize(
    "line",
    [
        "[]", "3", '{"start": 0}', '{"start": false, "stop": 6, "digest": "", "unreadable": {}}',
        '{"start": 0, "stop": 6.0, "digest": "", "unreadable": {}}',
        '{"start": 0, "stop": 1e300, "digest": "", "unreadable": {}}',
        '{"start": 0, "stop": 9, "digest": "", "unreadable": {}}',
        '{"start": 0, "stop": 6, "digest": "", "unreadable": {"x": "gone"}}',
        '{"start": 0, "stop": 6, "digest": "", "unreadable": {"99": "gone"}}',
        '{"start": 0, "stop": 6, "digest": "", "unreadable": {"1": 1}}',
    ],
)  # fmt: skip
def test_blocks_that_lie_are_refused(line: str, store_folder: Path) -> None:
    (store_folder / "blocks.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"blocks\.jsonl"):
        FeatureStore(store_folder)


def npy(header: str, version: int = 1, content: bytes = b"") -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + content


DAMAGED_ARRAYS = [
        b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff", b"\x93NUMPY\x09\x00\x01\x00{",
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 8), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8), }"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-6, -8), }"),
        npy("{'descr': '<f4', 'fortran_order': True, 'shape': (6, 8), }", content=bytes(192)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (6,), }", content=bytes(48)),
        npy("{'descr': '|S0', 'fortran_order': False, 'shape': (6,), }"),
        npy("{'descr': '|S2000000000', 'fortran_order': False, 'shape': (6,), }"),
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,), }"),
        npy("(" * 5000), npy("{1: 2, 'a': 3}"), npy("{'descr': "), npy('"' * 3),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8), }", version=2),
]  # fmt: skip


@pytest.mark.parametrize("name", ["embeddings", "flipped", "norms", "labels", "names"])
def test_damaged_arrays_are_named(name: str, store_folder: Path) -> None:
    path = store_folder / f"{name}.npy"
    for content in DAMAGED_ARRAYS:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"(?s){name}\.npy .*delete the folder"):
            FeatureStore(store_folder)
        assert path.read_bytes() == content


@pytest.mark.parametrize("change", [-1, 1, 4096])
def test_arrays_have_no_byte_more_or_less(change: int, store_folder: Path) -> None:
    path = store_folder / "embeddings.npy"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(ValueError, match=r"embeddings\.npy has \d+ bytes, expected"):
        FeatureStore(store_folder, verify=False)
