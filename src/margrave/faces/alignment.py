"""From five landmarks to the crop that embedders are trained on."""

from __future__ import annotations

import cv2
import numpy as np

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]]
)  # fmt: skip
"""(5, 2) where the landmarks lie in a crop of 112 × 112: ArcFace's."""
TEMPLATE_SIZE = 112


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(2, 3) the rotation, scale and shift, not mirrored, that brings points nearest to others.

    Least squares over a and b of a·z + b in the complex plane; Umeyama's solution, where it does
    not mirror.

    Args:
        source: (n, 2) points, at least two different ones.
        target: (n, 2) where they should go.

    Raises:
        ValueError: points that all coincide, or are not finite.

    >>> similarity(np.array([[0.0, 0], [1, 0]]), np.array([[2.0, 2], [2, 4]])).round(6).tolist()
    [[0.0, -2.0, 2.0], [2.0, 0.0, 2.0]]
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    centred = z - z.mean()
    spread = float((np.abs(centred) ** 2).sum())
    if not spread > 0 or not np.isfinite(spread):
        raise ValueError("landmarks that coincide, or are not finite, have no direction")
    a = (centred.conj() * (w - w.mean())).sum() / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(image: np.ndarray, landmarks: np.ndarray, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """The (size, size, 3) crop in which the landmarks lie as in ArcFace's template.

    Args:
        image: (height, width, 3) uint8 RGB.
        landmarks: (5, 2), see `Detection`.
        size: of a side; the template is scaled with it.

    Source: InsightFace's ``face_align.py``, for the template and black borders.

    >>> face = np.zeros((200, 200, 3), np.uint8)
    >>> align_face(face, TEMPLATE + 40).shape
    (112, 112, 3)
    """
    matrix = similarity(landmarks, TEMPLATE * (size / TEMPLATE_SIZE))
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
