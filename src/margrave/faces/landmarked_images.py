"""Align photos when they are read, using the landmarks of a landmark file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from margrave.data import ReadableImages, decode_image
from margrave.faces.alignment import align_face
from margrave.faces.landmark_file import Landmarks, read_landmarks
from margrave.files import read_bytes


class LandmarkedImages(ReadableImages):
    """Aligned crops of photos with known landmarks, such as IJB's loosely cropped images.

    Args:
        folder: the photo folder.
        landmarks: the photos' paths and landmarks, see `read_landmarks`.
        size: side of the aligned crops in pixels.
    """

    def __init__(self, folder: str | Path, landmarks: Landmarks, size: int = 112) -> None:
        self.folder, self.landmarks, self.size = Path(folder), landmarks, size

    def __len__(self) -> int:
        return len(self.landmarks.names)

    def path(self, index: int) -> str:
        """The photo's path relative to the folder."""
        return self.landmarks.names[index]

    def name(self, index: int) -> str:
        """The photo's path including the folder."""
        return str(self.folder / self.landmarks.names[index])

    def read(self, index: int) -> np.ndarray:
        """The aligned crop as (size, size, 3) uint8, RGB.

        Raises:
            ValueError: the photo cannot be read, or its landmarks coincide.
        """
        name = self.name(index)
        try:
            content = read_bytes(name)
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({error.strerror}); check the path") from None
        photo = decode_image(content, name)
        try:
            return align_face(photo, self.landmarks.points[index], self.size)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def open_landmarked_images(folder: str | Path, landmarks: str | Path, size: int) -> ReadableImages:
    """Open the aligned crops of the photos that a landmark file lists.

    Args:
        folder: the photo folder.
        landmarks: a file in IJB's format, such as ``ijbc_name_5pts_score.txt``.
        size: side of the aligned crops in pixels.
    """
    return LandmarkedImages(folder, read_landmarks(landmarks), size)
