"""Find and align faces with dlib's detector and landmarks; needs the extra ``baseline``."""

from __future__ import annotations

import math
import threading
from typing import Any

import cv2
import numpy as np

from margrave.faces.contract import AlignedFace, Detection
from margrave.files import first_line
from margrave.models.dlib_file import LANDMARKS, import_dlib, verify_weight_file

PADDING = 0.25
"""Width of the margin along each edge of an aligned crop (face chip), as a fraction of the crop's
side without margins. dlib's recognition network was trained with this value."""
SMALL_PHOTO = 512
"""Maximum side in pixels of photos that are enlarged and searched again if no face is detected."""
MIN_SIDE = 4
"""Photos with a shorter side (in pixels) are not searched."""
ORDER = (2, 3, 1, 0, 4)
"""Indices that reorder dlib's points: the eye corners from left to right, then the nose."""


class DlibFinder:
    """Finds and aligns faces for dlib's recognition network.

    The HOG detector finds upright faces at least 80 pixels wide (after shrinking to
    `longest_side`). If it finds none in a small photo, the finder adds a border, doubles the size
    and detects again. This second search finds faces at least 40 pixels wide and faces that fill
    the image.

    The ``landmarks`` of a `Detection` are dlib's five points: outer and inner corner of the left
    eye, inner and outer corner of the right eye, and bottom of the nose. Left and right are as seen
    in the image. These points do not fit ArcFace's template. The ``score`` is 1 / (1 + exp(−s)) for
    the detector's score s.

    Args:
        minimum_score: faces whose s (not ``score``) is lower are dropped.
        longest_side: larger photos are shrunk for detection until their longer side has this many
            pixels.

    Raises:
        ValueError: the extra ``baseline`` is not installed, or the file of dlib's landmark model is
            not the expected one.

    Source: King, Max-margin object detection (2015); Kazemi and Sullivan, One millisecond face
    alignment with an ensemble of regression trees (2014); dlib's ``get_face_chip``.
    """

    def __init__(self, *, minimum_score: float = 0.0, longest_side: int = 1280) -> None:
        self.minimum_score, self.longest_side = minimum_score, longest_side
        self._load()

    def _load(self) -> None:
        self._dlib = import_dlib()
        path = verify_weight_file(LANDMARKS)
        try:
            self._predictor = self._dlib.shape_predictor(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} cannot be read by dlib ({first_line(error)})") from error
        self._detector = self._dlib.get_frontal_face_detector()
        # The detector is not thread-safe, because it keeps its image pyramid between calls.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"minimum_score": self.minimum_score, "longest_side": self.longest_side}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def find(self, photo: np.ndarray, size: int = 150) -> list[AlignedFace]:
        """Find and align the faces in a photo, largest first.

        Args:
            photo: (height, width, 3) uint8 RGB.
            size: S, the side of the crops in pixels; dlib's network needs 150.
        """
        photo = np.ascontiguousarray(photo)
        height, width = photo.shape[:2]
        if min(height, width) < MIN_SIDE:
            return []
        scale = min(1.0, self.longest_side / max(height, width))
        boxes = self._search(photo, scale, margin=0)
        if not boxes and max(height, width) <= SMALL_PHOTO:
            boxes = self._search(photo, 2.0, margin=max(height, width) // 4)
        faces = [self._crop(photo, box, score, size) for box, score in boxes]
        return sorted(faces, key=lambda face: -face.detection.area)

    def _search(
        self, photo: np.ndarray, scale: float, margin: int
    ) -> list[tuple[np.ndarray, float]]:
        """Add a border of `margin` pixels to the photo, scale it, and detect faces.

        Returns:
            For each face, its (4,) box in pixels of the photo and the detector's score.
        """
        image = photo
        if margin:
            image = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
        height, width = image.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size != (width, height):
            interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            image = cv2.resize(image, size, interpolation=interpolation)
        # dlib does not enlarge the image further (0), and also returns the index of each face's
        # sub-detector.
        with self._lock:
            rectangles, scores, _ = self._detector.run(image, 0, self.minimum_score)
        to_photo = np.array([width / size[0], height / size[1]] * 2)
        # dlib's right and bottom are the last pixels inside the box; add 1 to get the edges.
        return [
            (
                np.array([box.left(), box.top(), box.right() + 1, box.bottom() + 1]) * to_photo
                - margin,
                float(score),
            )
            for box, score in zip(rectangles, scores, strict=True)
        ]

    def _crop(self, photo: np.ndarray, box: np.ndarray, score: float, size: int) -> AlignedFace:
        left, top, right, bottom = (round(float(edge)) for edge in box)
        rectangle = self._dlib.rectangle(left, top, right - 1, bottom - 1)
        dlib_landmarks = self._predictor(photo, rectangle)
        points = np.array([[point.x, point.y] for point in dlib_landmarks.parts()], np.float64)
        chip = self._dlib.get_face_chip(photo, dlib_landmarks, size=size, padding=PADDING)
        confidence = 1 / (1 + math.exp(-score))
        return AlignedFace(chip, Detection(box, points[list(ORDER)], confidence))
