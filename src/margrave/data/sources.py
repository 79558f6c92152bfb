"""Where images come from, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from margrave.data.contract import FaceImages
from margrave.data.image_folder import ImageFolder
from margrave.data.synthetic import SyntheticFaces
from margrave.registry import Registry

SOURCES: Registry[Callable[..., FaceImages]] = Registry("data set")
SOURCES.register("folder")(ImageFolder)
SOURCES.register("synthetic")(SyntheticFaces)


def open_images(spec: Mapping[str, Any]) -> FaceImages:
    """The images that ``{"kind": "folder" | "synthetic" | import path, **settings}`` describes."""
    return SOURCES.create(spec)
