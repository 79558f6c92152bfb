"""The interfaces of face detection and alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Detection:
    """A detected face in an image.

    Attributes:
        box: (4,) left, top, right, bottom in pixels.
        landmarks: (5, 2) x and y in pixels of the left eye, right eye, nose tip, left mouth corner
            and right mouth corner. Left and right are as seen in the image.
        score: the detector's confidence in (0, 1].
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        return float(self.box[2] - self.box[0])

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return self.width * float(self.box[3] - self.box[1])

    @property
    def can_be_aligned(self) -> bool:
        """Whether all landmarks are finite and span more than a pixel in width or height."""
        extent = np.ptp(self.landmarks, axis=0).max()
        return bool(np.isfinite(self.landmarks).all() and extent > 1)


class Detector(Protocol):
    """A face detector."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Detect the faces in a (height, width, 3) uint8 RGB image, most confident first."""
        ...


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """An aligned crop of a face in a photo.

    Attributes:
        crop: (S, S, 3) uint8 RGB, aligned.
        detection: the face's box, landmarks and score in the photo.
    """

    crop: np.ndarray
    detection: Detection


class FaceFinder(Protocol):
    """Finds and aligns the faces in a photo."""

    def find(self, photo: np.ndarray, size: int) -> list[AlignedFace]:
        """Find and align the faces in a photo, largest first.

        Args:
            photo: (height, width, 3) uint8 RGB.
            size: S, the side of the crops in pixels.
        """
        ...
