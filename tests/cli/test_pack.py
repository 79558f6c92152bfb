"""``margrave pack`` and what reads it again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from margrave.cli import app
from margrave.data import ImageFolder, RecordImages, ShardImages, detect_source, read_pairs_bin
from margrave.synthetic import SyntheticFaces


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    SyntheticFaces(num_identities=3, images_per_identity=4, image_size=32).write(folder)
    return folder


def pack(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["pack", *(str(part) for part in arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_folder_becomes_records_and_reads_back_identical(faces: Path, tmp_path: Path) -> None:
    assert "12 images" in pack(faces, tmp_path / "records", "--size", 32)
    given, packed = ImageFolder(faces), RecordImages(tmp_path / "records")
    assert np.array_equal(packed.labels, given.labels)
    for index in range(len(given)):
        assert packed.read_bytes(index) == given.read_bytes(index)
    assert packed.image_size == (32, 32)
    pack(tmp_path / "records", tmp_path / "again", "--size", 32)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "records" / name
        ).read_bytes()


def test_shards_are_packed_and_gone_on_with(faces: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    options = ("--shards", "--size", 32, "--images-per-shard", 5)
    assert "12 images" in pack(faces, shards, *options)
    assert detect_source(shards)["kind"] == "shards" and len(ShardImages(shards)) == 12
    assert sorted(path.name for path in shards.glob("*.tar")) == [
        f"shard-00000{number}.tar" for number in range(3)
    ]
    pack(shards, tmp_path / "records", "--size", 32)
    assert len(RecordImages(tmp_path / "records")) == 12


def test_other_sizes_are_fitted(faces: Path, tmp_path: Path) -> None:
    pack(faces, tmp_path / "records", "--size", 48, "--quality", 90)
    assert RecordImages(tmp_path / "records").read(0).shape == (48, 48, 3)


def test_pairs_become_a_verification_set(faces: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(faces).as_posix() for path in faces.rglob("*.*"))
    images = [path for path in paths if cv2.haveImageReader(str(faces / path))]
    lines = ["path_a,path_b,same"]
    lines += [f"{images[n]},{images[n + 1]},{1 - n % 2}" for n in range(10)]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert "10 pairs" in pack(
        faces, tmp_path / "own.bin", "--pairs", tmp_path / "pairs.csv", "--size", 32
    )
    pairs, packed = read_pairs_bin(tmp_path / "own.bin")
    assert pairs.same.tolist() == [True, False] * 5
    assert packed.read_bytes(1) == (faces / images[1]).read_bytes()


def test_broken_images_are_named_and_left_out(faces: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(faces, tmp_path / "faces")
    broken = ImageFolder(tmp_path / "faces").name(5)
    Path(broken).write_bytes(b"")
    output = pack(tmp_path / "faces", tmp_path / "records", "--size", 32)
    assert f"left out: {broken} is empty" in output.replace("\n", "") and "11 images" in output
    assert len(RecordImages(tmp_path / "records")) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fit", "squeeze"], "--fit 'squeeze'"),
        (["--pairs", "pairs.csv"], "the name of a verification set must end in .bin"),
    ],
)
def test_mistakes_are_told(faces: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(faces, tmp_path / "out", *arguments)


def test_records_are_not_overwritten(faces: Path, tmp_path: Path) -> None:
    pack(faces, tmp_path / "records", "--size", 32)
    with pytest.raises(ValueError, match="already contains records"):
        pack(faces, tmp_path / "records", "--size", 32)
