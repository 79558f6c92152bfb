"""What every set of face images offers, wherever its pixels come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class ReadableImages(Protocol):
    """N images, read one at a time."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file or record the image comes from, for messages."""
        ...

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the image cannot be read, naming the file and the reason.
        """
        ...


@runtime_checkable
class FaceImages(ReadableImages, Protocol):
    """N labelled face images.

    Attributes:
        labels: (N,) int64, the class of each image, 0 ≤ label < len(class_names).
        class_names: the identity behind each label.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def class_names(self) -> Sequence[str]: ...
