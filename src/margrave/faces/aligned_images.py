"""Align the largest face of each photo when the photo is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.faces.contract import FaceFinder
from margrave.images import ReadableImages


class AlignedImages(ReadableImages):
    """Aligned crops: the largest face of each photo, detected and aligned when it is read.

    Labels, names and order are those of the photos.

    Args:
        photos: images of any size.
        finder: detects and aligns faces.
        size: S, the side of the crops in pixels.
        alignment: name of the detector, to be recorded in the features of the crops.
    """

    def __init__(
        self, photos: ReadableImages, finder: FaceFinder, size: int = 112, alignment: str = "mtcnn"
    ) -> None:
        self.photos, self.finder, self.size, self.alignment = photos, finder, size, alignment
        self.labels, self.class_names = photos.labels, photos.class_names
        self.left_out, self.loose_images = photos.left_out, photos.loose_images
        self.other_formats, self.window = photos.other_formats, photos.window

    @property
    def quality(self) -> np.ndarray | None:
        """(N,) ground-truth quality of the photos in [0, 1]; None if unknown."""
        return self.photos.quality

    @property
    def content_digest(self) -> str | None:
        """SHA-256 of the photos if their names do not identify them; otherwise None."""
        return self.photos.content_digest

    @property
    def pieces(self) -> np.ndarray | None:
        """The pieces of the photos, see `ReadableImages`."""
        return self.photos.pieces

    def __len__(self) -> int:
        return len(self.photos)

    def name(self, index: int) -> str:
        """The photo's file or record, for messages."""
        return self.photos.name(index)

    def path(self, index: int) -> str:
        """The photo's identifier within its source."""
        return self.photos.path(index)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch these photos together if the source benefits from it."""
        self.photos.prefetch(indices)

    def read(self, index: int) -> np.ndarray:
        """The (S, S, 3) uint8 RGB crop of the largest face.

        Raises:
            ValueError: the photo cannot be read, or no face is found; the message names the photo.
        """
        faces = self.finder.find(self.photos.read(index), self.size)
        if not faces:
            raise ValueError(
                f"{self.photos.name(index)}: no face found; a larger or sharper photo may help"
            )
        return faces[0].crop
