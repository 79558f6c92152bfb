"""YuNet through OpenCV, where the user gives the model's file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from margrave.faces.contract import Detection

WIDTHS = (144, 160, 176, 192, 208, 224)
"""Of a face, in pixels, at which its landmarks are found once more."""
SURROUNDINGS = 3.0


class YuNet:
    """A small, fast detector; its file is not part of Margrave.

    Where a face is small or large its landmarks are coarse: they jump by some hundredths of the
    face's width when the image is resized. So each face is cut out with its surroundings, looked at
    in six sizes, and its landmarks are the mean.

    Args:
        model: ``face_detection_yunet_….onnx`` of OpenCV's model zoo.
        minimum_score: below it nothing is a face.
        overlap: boxes that share more of their union are one face.
        longest_side: larger images are shrunk to it for the search, pixels.

    Raises:
        ValueError: no such file, or no YuNet.

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
            raise ValueError(f"{model}: no such file; give YuNet's ONNX model")
        self.model = str(model)
        self.minimum_score, self.overlap = minimum_score, overlap
        self.longest_side = longest_side
        self._network = self._load()

    def _load(self) -> cv2.FaceDetectorYN:
        try:
            return cv2.FaceDetectorYN.create(
                self.model, "", (320, 320), self.minimum_score, self.overlap
            )
        except cv2.error as error:
            raise ValueError(f"{self.model} is no YuNet that OpenCV reads ({error.err})") from None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_network"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._network = self._load()

    def detect(self, image: np.ndarray) -> list[Detection]:
        found = self._search(image)
        return [replace(one, landmarks=self._refined(image, one)) for one in found]

    def _refined(self, image: np.ndarray, face: Detection) -> np.ndarray:
        """(5, 2) landmarks, averaged over looks at the face in several sizes."""
        centre, side = (face.box[:2] + face.box[2:]) / 2, SURROUNDINGS * face.width
        found = []
        for width in WIDTHS:
            scale = width / face.width
            # Area averaging where it shrinks: warped to a multiple, then reduced.
            multiple = min(max(1, int(np.ceil(1 / scale))), 4)
            size = round(side * scale)
            corner = centre - side / 2
            shift = np.concatenate([np.eye(2), -corner[:, None]], axis=1) * scale * multiple
            cut = cv2.warpAffine(image, shift, (size * multiple, size * multiple))
            if multiple > 1:
                cut = cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA)
            for one in self._search(cut):
                # A neighbour's face lies farther off.
                if np.abs((one.box[:2] + one.box[2:] - size) / 2).max() < width / 4:
                    found.append(one.landmarks / scale + corner)
                    break
        return np.mean(found, axis=0) if found else face.landmarks

    def _search(self, image: np.ndarray) -> list[Detection]:
        height, width = image.shape[:2]
        scale = min(1.0, self.longest_side / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._network.setInputSize(size)
        _, faces = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        if faces is None:
            return []
        back = np.array([width / size[0], height / size[1]])
        found = []
        for face in faces.astype(np.float64):
            corner, extent = face[:2] * back, face[2:4] * back
            landmarks = face[4:14].reshape(5, 2) * back
            found.append(
                Detection(np.concatenate([corner, corner + extent]), landmarks, float(face[14]))
            )
        return sorted(found, key=lambda one: -one.score)
