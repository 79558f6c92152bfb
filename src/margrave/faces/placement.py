"""Measure how well a face in a crop is aligned to ArcFace's template."""

from __future__ import annotations

import cv2
import numpy as np

from margrave.faces.alignment import TEMPLATE, fit_similarity_transform
from margrave.faces.contract import Detection, Detector

BORDER, ENLARGEMENT = 28, 2
"""Before detection, crops get a border of 28 pixels and are enlarged by a factor of 2, because
detectors miss small faces and faces that fill the image."""


def detect_face_in_crop(crop: np.ndarray, detector: Detector) -> Detection | None:
    """Detect the largest face in a crop; None if there is no face or it cannot be aligned.

    Box and landmarks are in pixels of the crop.

    Args:
        crop: (S, S, 3) uint8 RGB; the face may fill it.
        detector: the face detector.
    """
    bordered = cv2.copyMakeBorder(crop, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)
    enlarged = cv2.resize(
        bordered, None, fx=ENLARGEMENT, fy=ENLARGEMENT, interpolation=cv2.INTER_LINEAR
    )
    faces = detector.detect(enlarged)
    if not faces:
        return None
    face = max(faces, key=lambda face: face.area)
    box, landmarks = face.box / ENLARGEMENT - BORDER, face.landmarks / ENLARGEMENT - BORDER
    face = Detection(box, landmarks, face.score)
    return face if face.can_be_aligned else None


def template_transforms(landmarks: np.ndarray) -> np.ndarray:
    """(F, 2, 3) transforms (rotation, scale, shift) from the template to (F, 5, 2) landmarks."""
    return np.array([fit_similarity_transform(TEMPLATE, face) for face in landmarks]).reshape(
        -1, 2, 3
    )


def alignment_errors(landmarks: np.ndarray, placement: np.ndarray | None = None) -> np.ndarray:
    """(F,) alignment error of each face in pixels.

    Fits the template to the face's landmarks by a similarity transform and returns the mean
    distance of the fitted points from the target points, which are the template itself or, with
    `placement`, the transformed template. The landmarks are not compared directly with the target,
    because expression and pose move them even if the face is well aligned.

    Args:
        landmarks: (F, 5, 2) landmarks of F faces, in pixels of a crop of the template's size.
        placement: (2, 3) transform from the template to the target points; None for the template
            itself.

    >>> alignment_errors(TEMPLATE[None] + 3.0).round(3).tolist()
    [4.243]
    """
    fitted = _transform_template(template_transforms(landmarks))
    target = TEMPLATE if placement is None else _transform_template(placement[None])[0]
    return np.linalg.norm(fitted - target, axis=2).mean(axis=1)


def _transform_template(matrices: np.ndarray) -> np.ndarray:
    """Transform the template by each of (F, 2, 3) matrices; returns (F, 5, 2) points."""
    return TEMPLATE @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]
