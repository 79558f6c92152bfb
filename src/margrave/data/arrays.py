"""Images given as NumPy arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from functools import cached_property

import numpy as np

from margrave.data.labels import number_labels
from margrave.images import ReadableImages


class ArrayImages(ReadableImages):
    """Images given as NumPy arrays.

    Args:
        images: (N, height, width, 3) uint8, RGB; or a sequence of (height, width, 3) arrays of any
            sizes. Not copied.
        labels: one label per image, of any hashable type. Classes are numbered in order of first
            appearance.

    Raises:
        ValueError: an image is not (height, width, 3) uint8, or there is not one label per image.

    >>> faces = ArrayImages(np.zeros((2, 112, 112, 3), np.uint8), labels=["Ann", "Bo"])
    >>> faces.labels.tolist(), faces.class_names
    ([0, 1], ('Ann', 'Bo'))
    """

    def __init__(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        labels: Sequence[Hashable] | np.ndarray | None = None,
    ) -> None:
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ValueError(
                f"images has shape {images.shape}; give (N, height, width, 3), or a list of "
                "(height, width, 3) arrays"
            )
        # All images in one array have the same shape and dtype, so checking the first is enough.
        for index, image in enumerate(images[:1] if isinstance(images, np.ndarray) else images):
            _check_image(image, index)
        self._images = images
        if labels is not None:
            self.labels, self.class_names = number_labels(labels, len(images))

    def __len__(self) -> int:
        return len(self._images)

    @cached_property
    def content_digest(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """SHA-256 of shapes and pixels, because names such as ``image 0`` do not identify them."""
        digest = hashlib.sha256()
        for image in self._images:
            digest.update(np.array(image.shape, "<i8").tobytes())
            digest.update(np.ascontiguousarray(image).data)
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """``image 0``, ``image 1``, …"""
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB."""
        return self._images[index]


def _check_image(image: np.ndarray, index: int) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image {index} has dtype {image.dtype} and shape {image.shape}; give RGB pixels from "
            "0 to 255 as (height, width, 3) uint8"
        )
