"""The interface of an image set, whatever its source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

_NO_COUNTS: Mapping[str, int] = MappingProxyType({})


class ReadableImages(ABC):
    """N images, read one at a time, with or without labels.

    A subclass implements ``__len__``, ``name`` and ``read``; overriding the rest is optional.

    Attributes:
        labels: (N,) int64, the class of each image, 0 ≤ label < len(class_names); None if unknown.
        class_names: identity of each class, indexed by label.
        left_out: name of each identity skipped for too few images -> number of its images.
        loose_images: number of images skipped because they belong to no identity.
        other_formats: images in unsupported formats, file extension -> count.
        window: number of images, from several ``pieces``, that training shuffles together; unused
            if ``pieces`` is None.
        alignment: name of the detector that aligns photos on reading; empty if none does.
    """

    labels: np.ndarray | None = None
    class_names: Sequence[str] = ()
    left_out: Mapping[str, int] = _NO_COUNTS
    loose_images: int = 0
    other_formats: Mapping[str, int] = _NO_COUNTS
    window: int = 0
    alignment: str = ""

    @property
    def quality(self) -> np.ndarray | None:
        """(N,) ground-truth quality in [0, 1], 1 is best; None if unknown."""
        return None

    @property
    def content_digest(self) -> str | None:
        """SHA-256 of all pixels or files; None if the names are enough to identify the images."""
        return None

    @property
    def pieces(self) -> np.ndarray | None:
        """(P + 1,) index of the first image of each of P pieces, followed by N.

        A piece is a range of consecutive images that are fastest to read together, such as a part
        of a shard. None if the images are equally fast to read in any order.
        """
        return None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The image's file or record, for messages."""

    @abstractmethod
    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the image cannot be read; the message gives the file and the reason.
        """

    def path(self, index: int) -> str:
        """The image's identifier within its source; by default its name."""
        return self.name(index)

    def read_bytes(self, index: int) -> bytes | None:
        """The image's encoded file, or None if there is none.

        Raises:
            ValueError: the file cannot be read.
        """
        del index
        return None

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch these images together before they are read, if that is faster; a no-op here."""
        del indices


class FaceImages(ReadableImages):
    """N face images with labels."""

    labels: np.ndarray  # pyright: ignore[reportIncompatibleVariableOverride]
