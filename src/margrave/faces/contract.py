"""What a face detector answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Detection:
    """A face in an image.

    Attributes:
        box: (4,) left, top, right, bottom, pixels.
        landmarks: (5, 2) x and y of the eye on the image's left, the other eye, the nose's tip, the
            mouth's corner on the image's left and the other, pixels.
        score: the detector's confidence in (0, 1].
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def width(self) -> float:
        """Of the box, pixels."""
        return float(self.box[2] - self.box[0])

    @property
    def area(self) -> float:
        """Of the box, square pixels."""
        return self.width * float(self.box[3] - self.box[1])


class Detector(Protocol):
    """Finds faces."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        """The faces in an image (height, width, 3) uint8 RGB, most confident first."""
        ...
