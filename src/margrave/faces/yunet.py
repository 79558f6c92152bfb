"""The YuNet detector, run by OpenCV with a model file supplied by the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from margrave.faces.contract import Detection

FACE_WIDTHS = (144, 160, 176, 192, 208, 224)
"""Widths in pixels to which a face is resized when its landmarks are detected again."""
CROP_SCALE = 3.0
"""Side of the crop for the second detection, relative to the face's width."""


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Silence OpenCV's log, which warns about its own defaults; errors still raise exceptions."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)


class YuNet:
    """YuNet, a small and fast face detector; Margrave does not include its model file.

    The landmarks of small and large faces are imprecise: they move by several percent of the face's
    width if the image is resized. Therefore each face is cropped with its surroundings and detected
    again at six sizes, and the landmarks are averaged over these detections.

    Args:
        model: path of ``face_detection_yunet_….onnx`` from OpenCV's model zoo.
        minimum_score: faces with a lower score are dropped.
        overlap: maximum intersection over union of two boxes; above it, the box with the lower
            score is dropped.
        longest_side: larger images are shrunk for detection until their longer side has this many
            pixels.

    Raises:
        ValueError: the file does not exist or is not a YuNet model.

    Source: Wu, Peng and Yu, YuNet: a tiny millisecond-level face detector (2023).
    """

    def __init__(
        self,
        model: str | Path,
        *,
        minimum_score: float = 0.7,
        overlap: float = 0.3,
        longest_side: int = 1280,
    ) -> None:
        if not Path(model).is_file():
            raise ValueError(f"{model} does not exist; give the path of YuNet's ONNX model")
        self.model = str(model)
        self.minimum_score, self.overlap = minimum_score, overlap
        self.longest_side = longest_side
        self._network = self._load()

    def _load(self) -> cv2.FaceDetectorYN:
        try:
            with _silent_opencv():
                return cv2.FaceDetectorYN.create(
                    self.model, "", (320, 320), self.minimum_score, self.overlap
                )
        except cv2.error as error:
            raise ValueError(f"{self.model} is not a YuNet model ({error.err})") from None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_network"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._network = self._load()

    def detect(self, image: np.ndarray) -> list[Detection]:
        faces = self._search(image)
        return [replace(face, landmarks=self._refine_landmarks(image, face)) for face in faces]

    def _refine_landmarks(self, image: np.ndarray, face: Detection) -> np.ndarray:
        """(5, 2) landmarks, averaged over detections at several sizes."""
        center, image_side = (face.box[:2] + face.box[2:]) / 2, CROP_SCALE * face.width
        landmarks = []
        for width in FACE_WIDTHS:
            scale = width / face.width
            # warpAffine does not average pixels when it shrinks an image. Therefore warp to a
            # multiple of the size (at most 4 times), and shrink the result by averaging.
            multiple = min(max(1, int(np.ceil(1 / scale))), 4)
            crop_side = round(image_side * scale)
            corner = center - image_side / 2
            matrix = np.concatenate([np.eye(2), -corner[:, None]], axis=1) * scale * multiple
            crop = cv2.warpAffine(image, matrix, (crop_side * multiple, crop_side * multiple))
            if multiple > 1:
                crop = cv2.resize(crop, (crop_side, crop_side), interpolation=cv2.INTER_AREA)
            for candidate in self._search(crop):
                # Take the face in the center of the crop, and skip other faces nearby.
                offset = (candidate.box[:2] + candidate.box[2:] - crop_side) / 2
                if np.abs(offset).max() < width / 4:
                    landmarks.append(candidate.landmarks / scale + corner)
                    break
        return np.mean(landmarks, axis=0) if landmarks else face.landmarks

    def _search(self, image: np.ndarray) -> list[Detection]:
        height, width = image.shape[:2]
        scale = min(1.0, self.longest_side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._network.setInputSize(size)
        _, rows = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        to_image = np.array([width / size[0], height / size[1]])
        detections = []
        # Columns: 0 left, 1 top, 2 width, 3 height, 4-13 landmarks, 14 score.
        for row in rows.astype(np.float64):
            corner, extent = row[:2] * to_image, row[2:4] * to_image
            landmarks = row[4:14].reshape(5, 2) * to_image
            detections.append(
                Detection(np.concatenate([corner, corner + extent]), landmarks, float(row[14]))
            )
        return sorted(detections, key=lambda detection: -detection.score)
