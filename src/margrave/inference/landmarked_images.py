"""Photos whose landmarks are known, aligned as they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from margrave.data import ReadableImages, decode_image
from margrave.data.protocol_files import Landmarks, read_landmarks
from margrave.faces import align_face
from margrave.files import read_bytes


class LandmarkedImages:
    """Photos with known landmarks, aligned as they are read (IJB's loose crops).

    Args:
        folder: where the photos lie.
        landmarks: from ``read_landmarks``.
        size: of the aligned crop.
    """

    def __init__(self, folder: str | Path, landmarks: Landmarks, size: int = 112) -> None:
        self.folder, self.landmarks, self.size = Path(folder), landmarks, size

    def __len__(self) -> int:
        return len(self.landmarks.names)

    def path(self, index: int) -> str:
        """Where the photo lies in the folder."""
        return self.landmarks.names[index]

    def name(self, index: int) -> str:
        """Where the photo lies, for messages."""
        return str(self.folder / self.landmarks.names[index])

    def read(self, index: int) -> np.ndarray:
        """The (size, size, 3) crop.

        Raises:
            ValueError: the photo cannot be read, or its landmarks have no direction.
        """
        name = self.name(index)
        try:
            content = read_bytes(name)
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror})") from None
        try:
            return align_face(decode_image(content, name), self.landmarks.points[index], self.size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def open_landmarked(folder: str | Path, landmarks: str | Path, size: int) -> ReadableImages:
    """Photos of a folder with IJB's ``name_5pts_score.txt``."""
    return LandmarkedImages(folder, read_landmarks(landmarks), size)
