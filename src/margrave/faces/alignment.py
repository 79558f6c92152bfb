"""Align a face to ArcFace's template, using its five landmarks."""

from __future__ import annotations

import cv2
import numpy as np

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655],
     [70.7299, 92.2041]]
)  # fmt: skip
"""(5, 2) x and y of the landmarks in an aligned crop of 112 × 112 pixels, see `Detection`."""
TEMPLATE_SIZE = 112


def fit_similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) similarity transform (rotation, scale, shift) that best maps source to target.

    Interprets the source points as complex numbers z and the target points as w, and fits a·z + b
    to w by least squares. Unlike a fit of an affine transform, this cannot return a reflection.

    Args:
        source: (n, 2) points, at least two of them distinct.
        target: (n, 2) points; row i is the target of source point i.

    Raises:
        ValueError: all source points coincide, or one is not finite.

    >>> source, target = np.array([[0.0, 0], [1, 0]]), np.array([[2.0, 2], [2, 4]])
    >>> fit_similarity_transform(source, target).round(6).tolist()
    [[0.0, -2.0, 2.0], [2.0, 0.0, 2.0]]
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (source, target))
    centered = z - z.mean()
    spread = float((np.abs(centered) ** 2).sum())
    if not spread > 0 or not np.isfinite(spread):
        raise ValueError("the landmarks all coincide or are not finite, so no alignment exists")
    a = (centered.conj() * (w - w.mean())).sum() / spread
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_face(image: np.ndarray, landmarks: np.ndarray, size: int = TEMPLATE_SIZE) -> np.ndarray:
    """Crop a face to (size, size, 3) so that its landmarks match ArcFace's template.

    Parts of the crop outside the image are black.

    Args:
        image: (height, width, 3) uint8 RGB.
        landmarks: (5, 2) in pixels, see `Detection`.
        size: side of the crop in pixels; the template is scaled to it.

    Source (template and black parts): InsightFace's ``face_align.py``.

    >>> face = np.zeros((200, 200, 3), np.uint8)
    >>> align_face(face, TEMPLATE + 40).shape
    (112, 112, 3)
    """
    matrix = fit_similarity_transform(landmarks, TEMPLATE * (size / TEMPLATE_SIZE))
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR)
