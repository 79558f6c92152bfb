"""Measures each image once; all checks of data sets use these measurements."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from margrave.data import ReadableImages, fit_image
from margrave.progress import Progress

SIDE = 112
"""Images are fitted to this side length in pixels before they are measured."""
THUMBNAIL = 24
"""Side length of thumbnails in pixels."""
CELLS = 28
"""Side length of the small images in which eye contrasts and colorfulness are measured."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements of N images. Gray values and colors range from 0 to 255.

    Attributes:
        indices: (N,) the images' indices in the set.
        sizes: (N, 2) height and width in pixels.
        std: (N,) standard deviation of the gray values; near 0 for blank images.
        colorfulness: (N,) mean absolute difference of red from green and of green from blue; 0 for
            gray images.
        redness: (N,) mean of red minus blue in the middle of the image, where a face shows skin.
        eye_contrasts: (N, 4) how much darker the eyes' positions in ArcFace's template are than the
            area between them, plus how much darker they are than the area below them, in standard
            deviations of the face's gray values. The columns are for the image rotated
            counterclockwise by 0, 90, 180 and 270 degrees. In the first column, the mean over
            aligned faces is above 1.
        hashes: (N, 2) uint64, each with one bit per cell of an 8 × 8 grid. A bit is 1 if the cell's
            right neighbor (first hash) or lower neighbor (second hash) is brighter than the cell.
        thumbnails: (N, 24, 24) uint8 gray values.
        unreadable: index of each unreadable image -> reason; these are not among the N images.
    """

    indices: np.ndarray
    sizes: np.ndarray
    std: np.ndarray
    colorfulness: np.ndarray
    redness: np.ndarray
    eye_contrasts: np.ndarray
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
        images: any set of images.
        indices: indices of the images to measure.
        workers: number of threads.
        progress: called with (images done, total images).
    """

    def try_measure(index: int) -> tuple[Any, ...] | str:
        """Return an image's measurements, or the reason why it cannot be read."""
        try:
            return _measure_image(images.read(index))
        except ValueError as error:
            return str(error)

    measurements: list[tuple[Any, ...]] = []
    readable: list[int] = []
    unreadable: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        results = zip(indices, pool.map(try_measure, indices), strict=True)
        for done, (index, result) in enumerate(results, 1):
            if isinstance(result, str):
                unreadable[int(index)] = result
            else:
                readable.append(int(index))
                measurements.append(result)
            progress(done, len(indices))
    if not measurements:
        # Measure a dummy image to get the shapes and types of the empty arrays.
        measurements.append(_measure_image(np.zeros((SIDE, SIDE, 3), np.uint8)))
        columns = [np.stack(column)[:0] for column in zip(*measurements, strict=True)]
    else:
        columns = [np.stack(column) for column in zip(*measurements, strict=True)]
    return Measurements(np.array(readable, np.int64), *columns, unreadable=unreadable)


def _eye_contrasts(cells: np.ndarray) -> np.ndarray:
    """(4,) eye contrasts of a (28, 28) gray image, see ``Measurements.eye_contrasts``.

    A cell is 4 × 4 pixels of the 112 × 112 crop. In ArcFace's template the eyes are at (38, 52) and
    (74, 52), which is in row 13 and columns 9 and 18 of the cells. The eyes are
    measured in rows 12 and 13, in these columns and their neighbors. The face's gray values are
    those in rows 8 to 24 and columns 5 to 22.
    """
    contrasts = np.empty(4, np.float32)
    for quarter_turns in range(4):
        face = np.rot90(cells, quarter_turns)
        eyes = (face[12:14, 8:11].mean() + face[12:14, 17:20].mean()) / 2
        below = (face[16, 8:11].mean() + face[16, 17:20].mean()) / 2
        between = face[12:14, 13:15].mean()
        contrasts[quarter_turns] = (between + below - 2 * eyes) / (face[8:25, 5:23].std() + 1e-3)
    return contrasts


def _measure_image(image: np.ndarray) -> tuple[Any, ...]:
    """Measure an image: a value for each per-image attribute of `Measurements` except `indices`."""
    face = fit_image(image, SIDE)
    gray = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    # The region below the forehead and between the sides of the face shows skin.
    mean_color = (
        face[SIDE // 3 : 5 * SIDE // 6, SIDE // 4 : 3 * SIDE // 4].reshape(-1, 3).mean(axis=0)
    )
    small_color = cv2.resize(face, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.int16)
    # To compare neighbors in the 8 × 8 grid of the hashes, one more column or row is needed.
    across = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    down = cv2.resize(gray, (8, 9), interpolation=cv2.INTER_AREA)
    bits = np.stack([across[:, 1:] > across[:, :-1], down[1:] > down[:-1]])
    return (
        np.array(image.shape[:2], np.int64),
        np.float32(gray.std()),
        np.float32(np.abs(np.diff(small_color, axis=2)).mean()),
        np.float32(mean_color[0] - mean_color[2]),
        _eye_contrasts(
            cv2.resize(gray, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
        ),
        np.packbits(bits.reshape(2, 64), axis=1).view(np.uint64)[:, 0],
        cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA),
    )
