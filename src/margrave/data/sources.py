"""Where images come from, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from margrave.data.contract import FaceImages
from margrave.data.image_folder import ImageFolder
from margrave.data.record_images import RecordImages
from margrave.data.synthetic import SyntheticFaces
from margrave.registry import Registry

SOURCES: Registry[Callable[..., FaceImages]] = Registry("data set")
SOURCES.register("folder")(ImageFolder)
SOURCES.register("records")(RecordImages)
SOURCES.register("synthetic")(SyntheticFaces)


def recognise(path: str | Path) -> dict[str, Any]:
    """What lies at a path, as `open_images` takes it: records if there are any, else a folder.

    >>> recognise("faces")
    {'kind': 'folder', 'root': 'faces'}
    """
    path = Path(path)
    records = path.suffix == ".rec" or (path.is_dir() and any(path.glob("*.rec")))
    return {"kind": "records" if records else "folder", "root": str(path)}


def open_images(spec: Mapping[str, Any]) -> FaceImages:
    """The images that ``{"kind": name, **settings}`` describes.

    A kind is folder, records, synthetic, or an import path.
    """
    return SOURCES.create(spec)
