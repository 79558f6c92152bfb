"""Adapter for custom image objects that implement only a part of `ReadableImages`."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from margrave.data.labels import number_labels
from margrave.images import ReadableImages

_REQUIRED = ("__len__", "name", "read")
_OPTIONAL_ATTRIBUTES = ("left_out", "loose_images", "other_formats", "window", "alignment")
_OPTIONAL_METHODS = ("path", "read_bytes", "prefetch")


class MinimalImages(Protocol):
    """The minimal interface of a custom image object."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The image's file or record, for messages."""
        ...

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB."""
        ...


class AdaptedImages(ReadableImages):
    """Adapts an object with ``__len__``, ``name`` and ``read`` to `ReadableImages`.

    Args:
        images: the object. Any other members of `ReadableImages` that it has are used too.

    Raises:
        ValueError: a required method is missing, there is not one label per image, or a label is
            not an index into ``class_names``.
    """

    def __init__(self, images: Any) -> None:
        missing = [name for name in _REQUIRED if not hasattr(images, name)]
        if missing:
            raise ValueError(
                f"{type(images).__name__} cannot be read as images: it lacks {', '.join(missing)}; "
                "implement them as margrave.data.FaceImages describes"
            )
        self._images = images
        labels, class_names = (getattr(images, name, None) for name in ("labels", "class_names"))
        if labels is not None:
            if class_names is None:
                self.labels, self.class_names = number_labels(labels, len(images))
            else:
                self.labels, self.class_names = np.asarray(labels, np.int64), class_names
            if len(self.labels) != len(images):
                raise ValueError(
                    f"{type(images).__name__} has {len(self.labels)} labels for {len(images)} "
                    "images; give one label per image"
                )
            invalid = (self.labels < 0) | (self.labels >= len(self.class_names))
            if invalid.any():
                first = int(invalid.argmax())
                raise ValueError(
                    f"{type(images).__name__}: labels[{first}] is {self.labels[first]}, but there "
                    f"are {len(self.class_names)} class_names; give labels from 0 to "
                    f"{len(self.class_names) - 1}, or leave out class_names to allow any labels"
                )
        for name in (*_OPTIONAL_ATTRIBUTES, *_OPTIONAL_METHODS):
            if hasattr(images, name):
                setattr(self, name, getattr(images, name))

    def __len__(self) -> int:
        return len(self._images)

    @property
    def quality(self) -> np.ndarray | None:
        """(N,) ground-truth quality in [0, 1]; None if unknown."""
        return getattr(self._images, "quality", None)

    @property
    def content_digest(self) -> str | None:
        """SHA-256 of all pixels or files; None if the object does not provide it."""
        return getattr(self._images, "content_digest", None)

    @property
    def pieces(self) -> np.ndarray | None:
        """(P + 1,) index of the first image of each piece, then len(self); see `ReadableImages`."""
        return getattr(self._images, "pieces", None)

    def name(self, index: int) -> str:
        """The image's file or record, for messages."""
        return self._images.name(index)

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB; ValueError if it cannot be read."""
        return self._images.read(index)
