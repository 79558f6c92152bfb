from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from margrave.data import FaceImages, ImageFolder
from margrave.data.image_folder import natural_sort


def _write(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 10, 3), value, np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, images in {"s10": 2, "s2": 3, "s1": 1}.items():
        for number in range(images):
            _write(tmp_path / name / f"{number + 9}.png", number)
    return tmp_path


def test_identities_and_files_are_in_natural_order(root: Path) -> None:
    images = ImageFolder(root)
    assert isinstance(images, FaceImages)
    assert images.class_names == ("s1", "s2", "s10")
    assert images.labels.tolist() == [0, 1, 1, 1, 2, 2] and images.labels.dtype == np.int64
    assert [images.path(index) for index in (1, 2, 3)] == ["s2/9.png", "s2/10.png", "s2/11.png"]
    assert images.name(0) == str(root / "s1" / "9.png")
    assert images.read(3).shape == (8, 10, 3) and images.read(3).max() == 2


def test_identities_with_few_images_are_left_out_and_reported(root: Path) -> None:
    images = ImageFolder(root, minimum_images=2)
    assert images.class_names == ("s2", "s10")
    assert images.left_out == {"s1": 1}
    assert images.labels.max() == 1


def test_nested_hidden_and_foreign_files(root: Path) -> None:
    _write(root / "s1" / "video" / "3.JPEG.jpg")
    _write(root / "s1" / ".thumbnails" / "a.jpg")
    _write(root / ".cache" / "b.jpg")
    _write(root / "loose.png")
    (root / "s1" / "notes.txt").write_text("no image")
    (root / "s1" / "scan.TIFF").write_bytes(b"")
    (root / "s1" / "._scan.TIFF").write_bytes(b"")
    (root / "empty.jpg").mkdir()
    for name in ("UPPER.PNG", "from the web.jfif", "old.JPE"):
        (root / "s1" / name).write_bytes((root / "s1" / "9.png").read_bytes())
    images = ImageFolder(root)
    assert images.class_names == ("s1", "s2", "s10")
    assert images.left_out == {"empty.jpg": 0}
    assert (images.labels == 0).sum() == 5
    assert images.loose_images == 1
    assert images.other_formats == {".tiff": 1}


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    for name in ("Žofie", "李"):
        _write(tmp_path / name / "1.png")
    images = pickle.loads(pickle.dumps(ImageFolder(tmp_path)))
    assert {images.name(0), images.name(1)} == {
        str(tmp_path / name / "1.png") for name in ("Žofie", "李")
    }
    assert images.read(0).shape == (8, 10, 3)


def test_an_empty_folder_is_left_out(root: Path) -> None:
    (root / "empty").mkdir()
    assert ImageFolder(root).left_out == {"empty": 0}


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: no such file or folder"):
        ImageFolder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"contain no images \(\.jpg"):
        ImageFolder(tmp_path)
    _write(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 image but no folders of images; move"):
        ImageFolder(tmp_path)
    _write(tmp_path / "one" / "a.png")
    with pytest.raises(ValueError, match="contains 1 identity with at least 1 image"):
        ImageFolder(tmp_path)
    _write(tmp_path / "two" / "a.png")
    with pytest.raises(ValueError, match=r"at least 5 images \(2 identities with fewer\)"):
        ImageFolder(tmp_path, minimum_images=5)


def test_a_vanished_or_broken_image_is_named(root: Path) -> None:
    images = ImageFolder(root)
    (root / "s1" / "9.png").unlink()
    with pytest.raises(ValueError, match=r"s1/9\.png cannot be read \(No such file"):
        images.read(0)
    (root / "s2" / "9.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match=r"s2/9\.png is not an image"):
        images.read(1)


def test_natural_sort_is_total() -> None:
    names = ["a10b2", "a10b10", "a2", "10", "9", "", "a", "a010b2", "²"]
    ordered = natural_sort(names)
    assert ordered == natural_sort(reversed(names))
    assert ordered.index("9") < ordered.index("10")
    assert ordered.index("a2") < ordered.index("a10b2") < ordered.index("a10b10")
