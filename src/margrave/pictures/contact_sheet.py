"""Contact sheets: rows of images in one PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

GAP = 4
"""Pixels between images, and between images and the sheet's edges."""


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], path: Path) -> None:
    """Write rows of RGB images to one PNG file with a white background.

    Args:
        rows: the images of each row, (height, width, 3) uint8 and all of one shape; rows may have
            different numbers of images.
        path: the PNG file to write.

    Raises:
        ValueError: there are no images, or their shapes differ.
    """
    shapes = {image.shape for images in rows for image in images}
    if len(shapes) != 1:
        raise ValueError(f"a contact sheet needs images of one size, got shapes {sorted(shapes)}")
    height, width, _ = shapes.pop()
    columns = max(len(images) for images in rows)
    shape = (len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    sheet = np.full(shape, 255, np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            sheet[top : top + height, left : left + width] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())
