"""Open images from paths, URLs, specifications, arrays, lists and custom objects."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np

from margrave.data.adapter import AdaptedImages, MinimalImages
from margrave.data.arrays import ArrayImages
from margrave.data.contract import SOURCES
from margrave.data.image_folder import ImageFiles
from margrave.images import FaceImages, ReadableImages

ImageSource: TypeAlias = (
    str | Path | Mapping[str, Any] | np.ndarray | Sequence[Any] | ReadableImages | MinimalImages
)
Labels: TypeAlias = Sequence[Hashable] | np.ndarray


def detect_source(path: str | Path) -> dict[str, Any]:
    """Detect which source reads a path or URL; returns its specification.

    The specification ``{"kind": name, **settings}`` can be passed to `open_source` or written into
    a recipe. A path that no source recognizes is treated as a folder of identities.

    >>> detect_source("faces")
    {'kind': 'folder', 'root': 'faces'}
    >>> detect_source("https://example.org/faces")
    {'kind': 'shards', 'root': 'https://example.org/faces'}
    """
    spec = SOURCES.detect(os.fspath(path))
    assert spec is not None  # the folder source accepts every path
    return spec


@overload
def open_source(
    source: ImageSource, *, labeled: Literal[True], labels: Labels | None = None
) -> FaceImages: ...
@overload
def open_source(
    source: ImageSource, *, labeled: bool | None = None, labels: Labels | None = None
) -> ReadableImages: ...
def open_source(
    source: ImageSource, *, labeled: bool | None = None, labels: Labels | None = None
) -> ReadableImages:
    """Open images from any source.

    Args:
        source: a path or URL of a folder of identities or images, an image file, InsightFace
            records, shards, or a ``.bin`` of pairs; a specification ``{"kind": name, **settings}``;
            an (N, height, width, 3) uint8 array; a list of arrays or of paths; or an object with
            ``__len__``, ``name`` and ``read``.
        labeled: True requires labels and False ignores a folder's identities. By default images are
            labeled if the source provides labels.
        labels: for an array or a list: one label per image, of any hashable type.

    Raises:
        ValueError: there are no images, the source cannot be opened, labels are required but
            missing, or ``labels`` is given for anything but an array or a list.

    >>> open_source(np.zeros((2, 112, 112, 3), np.uint8), labels=["Ann", "Bo"]).class_names
    ('Ann', 'Bo')
    """
    images = _open(source, labeled, labels)
    if labeled and images.labels is None:
        name = source if isinstance(source, str | Path) else type(images).__name__
        raise ValueError(
            f"{name}: these images have no labels; give records, shards, a folder with one "
            "subfolder per identity, or an array or a list together with labels"
        )
    return images


def _open(source: ImageSource, labeled: bool | None, labels: Labels | None) -> ReadableImages:
    if isinstance(source, np.ndarray):
        return ArrayImages(source, labels)
    is_path = isinstance(source, str | Path)
    # A sequence that has `read` is a custom image object, not a list of images.
    if isinstance(source, Sequence) and not is_path and not hasattr(source, "read"):
        return _open_list(source, labels)
    if labels is not None:
        raise ValueError("labels can be given only with an array or a list of images")
    if isinstance(source, ReadableImages):
        return source
    if isinstance(source, Mapping):
        return _open(SOURCES.create(source), labeled, None)
    return _open_path(source, labeled) if is_path else AdaptedImages(source)


def _open_path(path: str | Path, labeled: bool | None) -> ReadableImages:
    spec = detect_source(path)
    if spec["kind"] != "folder":
        return open_source(spec)
    if labeled is False:
        return ImageFiles(path)
    # A folder without one subfolder per identity is opened as unlabeled images if labels are
    # optional. If it contains no images at all, the first error is raised.
    try:
        return open_source(spec)
    except ValueError as error:
        if labeled:
            raise
        try:
            return ImageFiles(path)
        except ValueError:
            raise error from None


def _open_list(items: Sequence[Any], labels: Labels | None) -> ReadableImages:
    if not items:
        raise ValueError("the list of images is empty; give at least one path or array")
    if all(isinstance(item, str | Path) for item in items):
        return ImageFiles(".", [os.fspath(item) for item in items], labels=labels)
    if all(isinstance(item, np.ndarray) for item in items):
        return ArrayImages(items, labels)
    types = sorted({type(item).__name__ for item in items})
    raise ValueError(f"the list contains {', '.join(types)}; give either paths or arrays")
