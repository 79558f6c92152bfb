"""Whole photos that are given to a model of aligned crops are pointed out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest

from margrave.cli.console import Console
from margrave.cli.options import warn_about_photos
from margrave.images import ReadableImages


class Sized(ReadableImages):
    """Black images of given heights and widths; those of height 0 cannot be read."""

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.shapes = shapes

    def __len__(self) -> int:
        return len(self.shapes)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        if not self.shapes[index][0]:
            raise ValueError("torn")
        return np.zeros((*self.shapes[index], 3), np.uint8)


@pytest.mark.parametrize(
    ("shapes", "warns"),
    [
        ([(480, 640), (600, 400), (0, 0), (768, 1024)], True),
        ([(112, 112)] * 40, False),
        ([(250, 250)] * 40, False),
        ([(90, 100), (112, 96), (120, 120)], False),
        ([(0, 0)], False),
    ],
)
def test_photos_are_pointed_out(shapes: Sequence[tuple[int, int]], warns: bool) -> None:
    console = Console(file=io.StringIO())
    warn_about_photos(console, Sized(shapes), 112)
    assert ("look like photos" in console.file.getvalue()) == warns  # type: ignore[attr-defined]
