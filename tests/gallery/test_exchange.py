"""Galleries as plain files, and for another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from margrave.gallery import (
    GalleryCard,
    MemoryGallery,
    create_gallery,
    export_gallery,
    open_gallery,
    read_exported_card,
    read_exported_people,
)

CARD = GalleryCard(weights="ab12", dimension=4, keep_images=True, fusion="mean")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    gallery = MemoryGallery(CARD)
    for number, name in enumerate(("Ann", "Bö", "李")):
        gallery.add(name, np.eye(4)[number : number + 2], crops=[b"one", bytes([number]) * 700])
    assert export_gallery(gallery, tmp_path / "export") == 3
    return tmp_path / "export"


def test_everybody_comes_back_whole(exported: Path, tmp_path: Path) -> None:
    assert read_exported_card(exported) == CARD
    with create_gallery(str(tmp_path / "new.gallery"), CARD) as gallery:
        assert gallery.restore(read_exported_people(exported)) == 3
        assert gallery.restore(read_exported_people(exported)) == 3
    with open_gallery(str(tmp_path / "new.gallery")) as gallery:
        assert [(each.name, each.images) for each in gallery.people()] == [
            ("Ann", 2),
            ("Bö", 2),
            ("李", 2),
        ]
        np.testing.assert_allclose(gallery.vector("Ann"), [1, 1, 0, 0], atol=1e-6)
        assert gallery.crops("李") == [b"one", b"\2" * 700]
        assert gallery.verify_erasure().complete


@pytest.mark.parametrize("name", ["people.jsonl", "vectors.npy", "crops.bin"])
def test_a_damaged_export_is_refused(exported: Path, name: str) -> None:
    content = bytearray((exported / name).read_bytes())
    content[len(content) // 2] ^= 1
    (exported / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is missing or damaged"):
        list(read_exported_people(exported))
    (exported / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing or damaged"):
        list(read_exported_people(exported))


def test_exports_are_neither_overwritten_nor_taken_from_elsewhere(
    exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="exists; choose another folder"):
        export_gallery(MemoryGallery(CARD), exported)
    with pytest.raises(ValueError, match="is not an exported gallery"):
        read_exported_card(tmp_path)
    (exported / "gallery.json").write_text("[]")
    with pytest.raises(ValueError, match="is damaged"):
        read_exported_card(exported)
