"""The canvas on which a synthetic face is painted in frontal view, in face units; see `factors`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

Color = tuple[float, float, float]
"""Red, green and blue, 0 to 255."""

HALF_EXTENT = 1.45
"""Half the side of the canvas in face units."""
OVERSAMPLING = 1.8
"""Side of the canvas in pixels, divided by the side of the image."""
SUBPIXEL_BITS = 4
"""Fractional bits of OpenCV's drawing coordinates."""


def mix(first: Color, second: Color, weight: float) -> Color:
    """Blend two colors; `weight` in [0, 1] is the share of the second."""
    return (
        first[0] + (second[0] - first[0]) * weight,
        first[1] + (second[1] - first[1]) * weight,
        first[2] + (second[2] - first[2]) * weight,
    )


def dim(color: Color, factor: float) -> Color:
    """Scale a color; a factor below 1 darkens it."""
    return (color[0] * factor, color[1] * factor, color[2] * factor)


@lru_cache(maxsize=64)
def spline_weights(num_controls: int, steps: int, closed: bool) -> np.ndarray:
    """(points, num_controls) Catmull-Rom weights; weights @ control points is a curve.

    The curve has `steps` points from each control point to the next.
    """
    segments = num_controls if closed else num_controls - 1
    position = np.arange(segments * steps + (0 if closed else 1)) / steps
    segment = np.minimum(position.astype(int), segments - 1)
    t = position - segment  # in [0, 1] within the segment
    cubic = np.stack(
        [
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        ]
    )
    weights = np.zeros((len(position), num_controls))
    for offset, weight in zip((-1, 0, 1, 2), cubic, strict=True):
        control = segment + offset
        control = control % num_controls if closed else np.clip(control, 0, num_controls - 1)
        np.add.at(weights, (np.arange(len(position)), control), weight)
    return weights


def curve(controls: Sequence[tuple[float, float]], steps: int = 5, closed: bool = False):
    """(points, 2) smooth curve through control points; `steps` points from each to the next."""
    return spline_weights(len(controls), steps, closed) @ np.array(controls)


def shifted(points: np.ndarray, x: float, y: float) -> np.ndarray:
    """Shift points by (x, y)."""
    return points + np.array((x, y))


def mirrored(points: np.ndarray) -> np.ndarray:
    """(2, points, 2) left and right copies of (points, 2) points of the right half."""
    return points * MIRROR


def ribbon(line: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """(..., 2 · points, 2) outline of a (..., points, 2) line.

    `width` is one number, or one per point.
    """
    tangent = np.empty_like(line)
    tangent[..., 1:-1, :] = line[..., 2:, :] - line[..., :-2, :]
    tangent[..., 0, :] = line[..., 1, :] - line[..., 0, :]
    tangent[..., -1, :] = line[..., -1, :] - line[..., -2, :]
    x, y = tangent[..., 0], tangent[..., 1]
    scale = 0.5 * width / np.sqrt(x * x + y * y)
    normal = np.stack([-y * scale, x * scale], axis=-1)
    return np.concatenate([line + normal, (line - normal)[..., ::-1, :]], axis=-2)


MIRROR = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])
"""Factors of (x, y) for the left and the right copy of a point."""
CIRCLE = np.stack([f(np.arange(14) * (2 * np.pi / 14)) for f in (np.cos, np.sin)], axis=1)
"""(14, 2) points on the unit circle."""


class FaceCanvas:
    """A layer of paint, and a layer of soft shadow, at half the resolution, that darkens the paint.

    Points are (points, 2) in face units, or (shapes, points, 2) for several shapes of one color.

    Attributes:
        paint: (size, size, 4) uint8, premultiplied RGBA.
        shadow: (shadow_size, shadow_size) uint8; 255 means no shadow.
    """

    def __init__(self, image_size: int) -> None:
        self.size = round(image_size * OVERSAMPLING)
        self.shadow_size = self.size // 2
        self.paint = np.zeros((self.size, self.size, 4), np.uint8)
        self.shadow = np.full((self.shadow_size, self.shadow_size), 255, np.uint8)

    def fill(self, points: np.ndarray, color: Color) -> None:
        shapes = to_fixed_point(points, self.size)
        cv2.fillPoly(self.paint, shapes, (*color, 255), cv2.LINE_AA, SUBPIXEL_BITS)

    def draw_strands(self, lines: np.ndarray, color: Color) -> None:
        """Draw lines one pixel wide without antialiasing; the oversampling smooths them."""
        shapes = to_fixed_point(lines, self.size)
        cv2.polylines(self.paint, shapes, False, (*color, 255), 1, cv2.LINE_8, SUBPIXEL_BITS)

    def fill_discs(self, centers: np.ndarray, radius: float | np.ndarray, color: Color) -> None:
        self.fill(centers[:, None] + CIRCLE * np.reshape(radius, (-1, 1, 1)), color)

    def shade(self, points: np.ndarray, depth: float) -> None:
        """Fill shapes with a shadow that absorbs the fraction `depth` of the light.

        It replaces earlier shadows in these shapes; depth 0 erases them.
        """
        shapes = to_fixed_point(points, self.shadow_size)
        cv2.fillPoly(self.shadow, shapes, 255 * (1 - depth), cv2.LINE_AA, SUBPIXEL_BITS)

    def draw_creases(self, lines: np.ndarray, depth: float) -> None:
        """Draw shadow lines about 0.025 face units wide."""
        shapes = to_fixed_point(lines, self.shadow_size)
        width = max(1, round(self.shadow_size / 110))
        cv2.polylines(
            self.shadow, shapes, False, 255 * (1 - depth), width, cv2.LINE_AA, SUBPIXEL_BITS
        )

    def soften_shadow(self) -> None:
        """Blur all shadows drawn so far, with a box about 0.08 face units wide."""
        width = 2 * (self.shadow_size // 75) + 1
        self.shadow = cv2.blur(self.shadow, (width, width))


def to_fixed_point(points: np.ndarray, size: int) -> list[np.ndarray]:
    """Convert points from face units to OpenCV's fixed-point pixels on a (size, size) canvas."""
    scale = (1 << SUBPIXEL_BITS) * size / (2 * HALF_EXTENT)
    # Half a pixel is subtracted, because OpenCV's coordinates start at the first pixel's center.
    shapes = (points * scale + (HALF_EXTENT * scale - (1 << SUBPIXEL_BITS) / 2)).astype(np.int32)
    return list(shapes) if shapes.ndim == 3 else [shapes]
