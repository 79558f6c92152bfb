"""Read landmark files in IJB's format: five points and a detector score per image."""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from margrave.files.text import DECIMAL, ConsistencyCheck, is_relative_path, malformed, read_lines

_VALUES_PER_LINE = 11
"""Numbers after the path: x and y of five points, and the score."""
_LANDMARK_LINE = re.compile(rf"\s*+\S++(?:\s++{DECIMAL}){{{_VALUES_PER_LINE}}}\s*+")


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Five landmarks and a detector score for each of N images.

    Attributes:
        names: relative path of each image, as in the file.
        points: (N, 5, 2) float64, x and y in pixels, in the order of `Detection.landmarks`.
        scores: (N,) float64, detector confidence.
    """

    names: tuple[str, ...]
    points: np.ndarray
    scores: np.ndarray


def read_landmarks(path: str | Path) -> Landmarks:
    """Read a landmark file such as ``ijbc_name_5pts_score.txt``.

    Each line gives an image's path, x and y of five points, and the detector score.

    Raises:
        ValueError: the file lists no images, a line is malformed, or two lines give different
            values for the same image. The message names the lines.
    """
    names: list[str] = []
    rows: list[bytes] = []
    consistency = ConsistencyCheck(path, "image", "set of points and score")
    for line_number, line in read_lines(path):
        name, *fields = line.split()
        is_valid = _LANDMARK_LINE.fullmatch(line) and is_relative_path(name)
        values = array("d", map(float, fields) if is_valid else ())
        if not is_valid or not all(map(math.isfinite, values)):
            raise malformed(
                path, line_number, line, "an image's relative path and x1 y1 x2 y2 … x5 y5 score"
            )
        row = values.tobytes()
        consistency.add(name, row, line_number, line)
        names.append(name)
        rows.append(row)
    if not names:
        raise ValueError(f"{path} lists no images; give the test set's *_name_5pts_score.txt")
    table = np.frombuffer(b"".join(rows)).reshape(-1, _VALUES_PER_LINE)
    points = table[:, :-1].reshape(-1, 5, 2).copy()
    return Landmarks(tuple(names), points, table[:, -1].copy())
