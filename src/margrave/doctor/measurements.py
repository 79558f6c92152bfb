"""One look at each image: what the checks of a data set go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from margrave.data import ReadableImages, fit_image

SIDE = 112
THUMBNAIL = 24
CELLS = 28
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Measurements:
    """What was seen of N images.

    Attributes:
        indices: (N,) where they stand in the set.
        sizes: (N, 2) height and width.
        deviation: (N,) of the grey values; near 0 where nothing is on the image.
        colour: (N,) mean difference between channels; 0 for grey images.
        redness: (N,) mean of red minus blue in the middle, where skin is.
        eyes: (N, 4) how much darker it is where ArcFace's template has the eyes than between and
            below them, in deviations of the face's grey values; for the image as it is and turned
            by 90, 180 and 270 degrees. Above 1 on average for aligned faces.
        hashes: (N, 2) uint64, whether each part is brighter than its right and its lower neighbour.
        thumbnails: (N, 24, 24) uint8, grey.
        unreadable: the images that cannot be read, and why, by index.
    """

    indices: np.ndarray
    sizes: np.ndarray
    deviation: np.ndarray
    colour: np.ndarray
    redness: np.ndarray
    eyes: np.ndarray
    hashes: np.ndarray
    thumbnails: np.ndarray
    unreadable: dict[int, str]

    def __len__(self) -> int:
        return len(self.indices)


def measure_images(
    images: ReadableImages,
    indices: Sequence[int],
    workers: int = 4,
    progress: Progress = lambda done, total: None,
) -> Measurements:
    """Read and measure images.

    Args:
        images: any set.
        indices: which of them.
        workers: threads.
        progress: called with (images done, images in all).
    """

    def look(index: int) -> tuple[Any, ...] | str:
        try:
            return _look(images.read(index))
        except ValueError as error:
            return str(error)

    found: list[tuple[Any, ...]] = []
    good: list[int] = []
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for done, (index, seen) in enumerate(zip(indices, pool.map(look, indices), strict=True), 1):
            if isinstance(seen, str):
                unreadable[int(index)] = seen
            else:
                good.append(int(index))
                found.append(seen)
            progress(done, len(indices))
    if not found:
        found.append(_look(np.zeros((SIDE, SIDE, 3), np.uint8)))
        columns = [np.stack(column)[:0] for column in zip(*found, strict=True)]
    else:
        columns = [np.stack(column) for column in zip(*found, strict=True)]
    return Measurements(np.array(good, np.int64), *columns, unreadable=unreadable)


def _eyes(cells: np.ndarray) -> np.ndarray:
    found = np.empty(4, np.float32)
    for turns in range(4):
        face = np.rot90(cells, turns)
        eyes = (face[12:14, 8:11].mean() + face[12:14, 17:20].mean()) / 2
        below = (face[16, 8:11].mean() + face[16, 17:20].mean()) / 2
        between = face[12:14, 13:15].mean()
        found[turns] = (between + below - 2 * eyes) / (face[8:25, 5:23].std() + 1e-3)
    return found


def _look(image: np.ndarray) -> tuple[Any, ...]:
    """Size, deviation, colour, redness, eyes, hashes and thumbnail."""
    face = fit_image(image, SIDE)
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    middle = face[SIDE // 3 : 5 * SIDE // 6, SIDE // 4 : 3 * SIDE // 4].reshape(-1, 3).mean(axis=0)
    small = cv2.resize(face, (28, 28), interpolation=cv2.INTER_AREA).astype(np.int16)
    across = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    down = cv2.resize(grey, (8, 9), interpolation=cv2.INTER_AREA)
    bits = np.stack([across[:, 1:] > across[:, :-1], down[1:] > down[:-1]])
    return (
        np.array(image.shape[:2], np.int64),
        np.float32(grey.std()),
        np.float32(np.abs(np.diff(small, axis=2)).mean()),
        np.float32(middle[0] - middle[2]),
        _eyes(cv2.resize(grey, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)),
        np.packbits(bits.reshape(2, 64), axis=1).view(np.uint64)[:, 0],
        cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA),
    )
