"""Find faces in photos and align them to ArcFace's template."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from margrave.faces.alignment import align_face
from margrave.faces.contract import AlignedFace, Detection, Detector
from margrave.faces.mtcnn import MTCNN
from margrave.faces.yunet import YuNet

SMALL_PHOTO = 512
"""Maximum side in pixels of photos that are enlarged and searched again if no face is detected."""


class TemplateFinder:
    """Finds faces in a photo and aligns them to ArcFace's template.

    If the detector finds no face in a small photo, the finder adds a border, enlarges the photo and
    detects again, because detectors miss faces that fill the image.

    Args:
        detector: finds the faces and their landmarks.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    def find(self, photo: np.ndarray, size: int) -> list[AlignedFace]:
        """Find and align the faces in a photo, largest first.

        Args:
            photo: (height, width, 3) uint8 RGB.
            size: S, the side of the crops in pixels.
        """
        detections = self.detector.detect(photo)
        if not detections and max(photo.shape[:2]) <= SMALL_PHOTO:
            detections = self._detect_with_border(photo)
        faces = []
        for detection in sorted(detections, key=lambda face: -face.area):
            if detection.can_be_aligned:
                faces.append(AlignedFace(align_face(photo, detection.landmarks, size), detection))
        return faces

    def _detect_with_border(self, photo: np.ndarray) -> list[Detection]:
        """Detect in the enlarged photo; the results are in pixels of the original photo."""
        margin = max(photo.shape[:2]) // 4
        bordered = cv2.copyMakeBorder(photo, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        scale = 2.0
        enlarged = cv2.resize(bordered, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        return [
            Detection(face.box / scale - margin, face.landmarks / scale - margin, face.score)
            for face in self.detector.detect(enlarged)
        ]


def build_detector(name: str | Path | None = None) -> Detector:
    """Create a detector by name or file.

    Args:
        name: ``mtcnn`` (the default) or the path of YuNet's ONNX file.

    Raises:
        ValueError: MTCNN's weights are not installed (extra ``align``), or the file does not exist
            or is not a YuNet model.
    """
    if name is None or str(name) == "mtcnn":
        return MTCNN()
    return YuNet(name)
