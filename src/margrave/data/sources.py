"""Where images come from, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from margrave.data.contract import FaceImages
from margrave.data.image_folder import ImageFolder
from margrave.data.record_images import RecordImages
from margrave.data.shards import INDEX, ShardImages
from margrave.registry import Registry
from margrave.synthetic import SyntheticFaces

SOURCES: Registry[Callable[..., FaceImages]] = Registry("data set")
SOURCES.register("folder")(ImageFolder)
SOURCES.register("records")(RecordImages)
SOURCES.register("shards")(ShardImages)
SOURCES.register("synthetic")(SyntheticFaces)


def recognise(path: str | Path) -> dict[str, Any]:
    """What lies at a path, as `open_images` takes it: records, shards, or else a folder.

    >>> recognise("faces")
    {'kind': 'folder', 'root': 'faces'}
    >>> recognise("https://example.org/faces")
    {'kind': 'shards', 'root': 'https://example.org/faces'}
    """
    if "://" in str(path):
        return {"kind": "shards", "root": str(path)}
    path, kind = Path(path), "folder"
    if path.suffix == ".rec" or (path.is_dir() and any(path.glob("*.rec"))):
        kind = "records"
    elif path.is_dir() and ((path / INDEX).is_file() or any(path.glob("*.tar"))):
        kind = "shards"
    return {"kind": kind, "root": str(path)}


def open_images(spec: Mapping[str, Any]) -> FaceImages:
    """The images that ``{"kind": name, **settings}`` describes.

    A kind is folder, records, shards, synthetic, or an import path.
    """
    return SOURCES.create(spec)
