"""MTCNN in PyTorch; its weights come from the ``mtcnn`` package (extra ``align``)."""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from margrave.faces.contract import Detection

WEIGHT_DIGESTS = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
"""SHA-256 of the weight files of mtcnn 1.0.0. Pickles can run code, so no others are loaded."""
WINDOW, STRIDE = 12, 2
"""Side and stride of the first network's sliding window, in pixels of a pyramid level."""
PYRAMID_STEP = 0.709
"""Scale of each level of the image pyramid relative to the previous one."""
MAX_CANDIDATES = 2000
"""Maximum number of boxes that the first network passes to the second."""


def load_weights(name: str) -> list[Tensor]:
    """Load a network's weights in layer order; those of convolutions are (out, in, height, width).

    Args:
        name: the network, a key of `WEIGHT_DIGESTS`.

    Raises:
        ValueError: the mtcnn package is not installed, or its weight file is not that of
            version 1.0.0.
    """
    package = find_spec("mtcnn")
    if package is None or package.origin is None:
        raise ValueError(
            "MTCNN's weights come with the mtcnn package, which is not installed: "
            "pip install 'margrave[align]'"
        )
    path = Path(package.origin).parent / "assets" / "weights" / f"{name}.lz4"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != WEIGHT_DIGESTS[name]:
        raise ValueError(
            f"{path} is missing or not the file of mtcnn 1.0.0; other pickles can run code, so "
            "they are not loaded. Install the right version: pip install mtcnn==1.0.0"
        )
    import joblib
    import lz4.frame

    arrays = joblib.load(io.BytesIO(lz4.frame.decompress(content)))
    return [
        torch.from_numpy(
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.squeeze()
        ).float()
        for array in arrays
    ]


class _Network(nn.Module):
    """One of the three networks: convolutions, an optional linear layer, two or three outputs.

    Args:
        name: key of the network in `WEIGHT_DIGESTS`.
        pools: window size of the max pooling after each convolution; 0 means no pooling.
        hidden: whether a hidden linear layer precedes the outputs.
    """

    def __init__(self, name: str, pools: tuple[int, ...], hidden: bool) -> None:
        super().__init__()
        weights = load_weights(name)
        self.pools = pools
        # A trunk layer has a weight, a bias and PReLU slopes; an output has a weight and a bias.
        end = 3 * (len(pools) + hidden)
        self.trunk = [weights[start : start + 3] for start in range(0, end, 3)]
        self.outputs = [weights[start : start + 2] for start in range(end, len(weights), 2)]
        self.hidden = hidden

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs, each (B, n), or (B, n, rows, columns) if there is no hidden layer.

        Returns:
            The shifts of the box's edges (n = 4, see `_apply_shifts`), then the landmarks (n = 10;
            only the third network), then two logits: not a face, face.
        """
        values = images
        # zip stops before the hidden layer, which is not in `pools`.
        for pool, (weight, bias, slope) in zip(self.pools, self.trunk, strict=False):
            values = functional.prelu(functional.conv2d(values, weight, bias), slope)
            if pool:
                values = functional.max_pool2d(values, pool, 2, ceil_mode=True)
        if not self.hidden:
            return [functional.conv2d(values, weight, bias) for weight, bias in self.outputs]
        weight, bias, slope = self.trunk[-1]
        # The weights expect the features flattened from (columns, rows, channels).
        flat = values.permute(0, 3, 2, 1).flatten(1)
        values = functional.prelu(flat @ weight + bias, slope)
        return [values @ weight + bias for weight, bias in self.outputs]


class MTCNN:
    """MTCNN: a cascade of three small networks for proposals, refinement and landmarks.

    Args:
        minimum_face: side of the smallest detected faces in pixels, after shrinking to
            `longest_side`.
        thresholds: minimum confidence of the boxes after each network.
        longest_side: larger images are shrunk for detection until their longer side has this many
            pixels.

    Raises:
        ValueError: the weights are not installed, or are not those of mtcnn 1.0.0.

    Source: Zhang et al., Joint face detection and alignment using multi-task cascaded convolutional
    networks (2016); the thresholds are the paper's.
    """

    def __init__(
        self,
        *,
        minimum_face: int = 20,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
        longest_side: int = 1280,
    ) -> None:
        self.minimum_face = minimum_face
        self.thresholds = thresholds
        self.longest_side = longest_side
        self.propose = _Network("pnet", (2, 0, 0), hidden=False)
        self.refine = _Network("rnet", (3, 3, 0), hidden=True)
        self.finish = _Network("onet", (3, 3, 2, 0), hidden=True)

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> list[Detection]:
        height, width = image.shape[:2]
        shrink = min(1.0, self.longest_side / max(height, width))
        small = image
        if shrink < 1:
            size = max(1, round(width * shrink)), max(1, round(height * shrink))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        boxes = self._propose_boxes(small)
        boxes = self._refine_boxes(small, boxes)
        faces = self._locate_landmarks(small, boxes)
        to_image = np.array([width / small.shape[1], height / small.shape[0]])
        return [
            Detection(box * np.tile(to_image, 2), landmarks * to_image, score)
            for box, landmarks, score in faces
        ]

    def _propose_boxes(self, image: np.ndarray) -> np.ndarray:
        """Run the first network on the image pyramid; returns (n, 5) square boxes with scores."""
        scale = WINDOW / self.minimum_face
        # Columns of each level's boxes: edges (4), score (1), shifts of the edges (4).
        boxes_of_levels = [np.zeros((0, 9))]
        while min(image.shape[:2]) * scale >= WINDOW:
            size = int(np.ceil(image.shape[1] * scale)), int(np.ceil(image.shape[0] * scale))
            level = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            shifts, logits = self.propose(_to_tensor([level]))
            confidence = logits.softmax(dim=1)[0, 1]
            rows, columns = torch.nonzero(confidence > self.thresholds[0], as_tuple=True)
            corners = torch.stack([columns, rows], dim=1).double().numpy() * STRIDE
            boxes = np.concatenate([corners / scale, (corners + WINDOW) / scale], axis=1)
            box_scores = confidence[rows, columns].double().numpy()[:, None]
            box_shifts = shifts[0, :, rows, columns].T.double().numpy()
            level_boxes = np.concatenate([boxes, box_scores, box_shifts], axis=1)
            best = _non_maximum_suppression(level_boxes, overlap=0.5)
            boxes_of_levels.append(level_boxes[best])
            scale *= PYRAMID_STEP
        candidates = np.concatenate(boxes_of_levels)
        best = _non_maximum_suppression(candidates, overlap=0.7)
        candidates = candidates[best][:MAX_CANDIDATES]
        return _to_squares(_apply_shifts(candidates[:, :5], candidates[:, 5:]))

    def _refine_boxes(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Run the second network; returns (m, 5) square boxes of likely faces, with scores."""
        if not len(boxes):
            return boxes
        shifts, logits = self.refine(_to_tensor(_crop_boxes(image, boxes, size=24)))
        confidence = logits.softmax(dim=1)[:, 1].double().numpy()
        is_face = confidence > self.thresholds[1]
        boxes = np.concatenate([boxes[is_face, :4], confidence[is_face, None]], axis=1)
        shifts = shifts.double().numpy()[is_face]
        best = _non_maximum_suppression(boxes, overlap=0.7)
        return _to_squares(_apply_shifts(boxes[best], shifts[best]))

    def _locate_landmarks(
        self, image: np.ndarray, boxes: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """Run the third network; returns the (4,) box, (5, 2) landmarks and score of each face."""
        if not len(boxes):
            return []
        shifts, points, logits = self.finish(_to_tensor(_crop_boxes(image, boxes, size=48)))
        confidence = logits.softmax(dim=1)[:, 1].double().numpy()
        is_face = confidence > self.thresholds[2]
        boxes = np.concatenate([boxes[is_face, :4], confidence[is_face, None]], axis=1)
        # The network returns five x, then five y, as fractions of the box.
        fractions = points.double().numpy()[is_face].reshape(-1, 2, 5).transpose(0, 2, 1)
        extent = (boxes[:, 2:4] - boxes[:, :2])[:, None]
        landmarks = boxes[:, None, :2] + fractions * extent
        boxes = _apply_shifts(boxes, shifts.double().numpy()[is_face])
        best = _non_maximum_suppression(boxes, overlap=0.7, relative_to_smaller=True)
        return [(boxes[index, :4], landmarks[index], float(boxes[index, 4])) for index in best]


def _to_tensor(images: list[np.ndarray]) -> Tensor:
    """Stack B uint8 images to a (B, 3, height, width) tensor in [−1, 1]."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return (pixels - 127.5) / 128


def _crop_boxes(image: np.ndarray, boxes: np.ndarray, size: int) -> list[np.ndarray]:
    """Crop each box and resize it to (size, size, 3); pixels outside the image are black."""
    crops = []
    height, width = image.shape[:2]
    for left, top, right, bottom in np.round(boxes[:, :4]).astype(int):
        box_width, box_height = max(right - left, 1), max(bottom - top, 1)
        x0, y0, x1, y1 = (
            max(left, 0),
            max(top, 0),
            min(left + box_width, width),
            min(top + box_height, height),
        )
        crop = np.zeros((box_height, box_width, 3), np.uint8)
        if x1 > x0 and y1 > y0:
            crop[y0 - top : y1 - top, x0 - left : x1 - left] = image[y0:y1, x0:x1]
        crops.append(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA))
    return crops


def _apply_shifts(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Shift the edges of boxes (right and down are positive).

    Args:
        boxes: (n, 5) left, top, right, bottom, score; the score is kept.
        shifts: (n, 4) shift of each edge as a fraction of the box's width or height.
    """
    extent = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    return np.concatenate([boxes[:, :4] + shifts * extent, boxes[:, 4:5]], axis=1)


def _to_squares(boxes: np.ndarray) -> np.ndarray:
    """Expand each box around its center to a square whose side is the box's longer side."""
    center = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0) / 2
    return np.concatenate([center - half, center + half, boxes[:, 4:5]], axis=1)


def _non_maximum_suppression(
    boxes: np.ndarray, overlap: float, *, relative_to_smaller: bool = False
) -> np.ndarray:
    """Indices of the boxes to keep, best first.

    Args:
        boxes: (n, 5 or more) left, top, right, bottom, score; further columns are ignored.
        overlap: maximum overlap with a selected box of a higher score, from 0 to 1; boxes with a
            larger overlap are dropped. The overlap is the area of the intersection divided by that
            of the union.
        relative_to_smaller: divide the intersection by the smaller box's area instead.
    """
    order = np.argsort(-boxes[:, 4], kind="stable")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    selected = []
    while len(order):
        best, others = order[0], order[1:]
        selected.append(best)
        low = np.maximum(boxes[best, :2], boxes[others, :2])
        high = np.minimum(boxes[best, 2:4], boxes[others, 2:4])
        intersection = (high - low).clip(min=0).prod(axis=1)
        smaller = np.minimum(areas[best], areas[others])
        union = areas[best] + areas[others] - intersection
        reference = smaller if relative_to_smaller else union
        order = others[intersection <= overlap * reference]
    return np.array(selected, dtype=int)
