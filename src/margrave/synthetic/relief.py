"""The relief of a synthetic face, used to light the face and to project it under head rotation.

A face is a shallow paraboloid with axis-aligned Gaussian bumps (nose, sockets, cheekbones, lips,
chin), so the sum of all bumps over a grid is one matrix product.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from margrave.synthetic.canvas import HALF_EXTENT
from margrave.synthetic.factors import FaceCapture, FaceIdentity

GRID = 48
"""Number of cells along each side of the relief."""
AXIS = (((np.arange(GRID) + 0.5) / GRID * 2 - 1) * HALF_EXTENT).astype(np.float32)
"""(GRID,) coordinates of the cells' centers in face units."""
# Cells, half extent and coordinates (in face units) of the coarse grid over the image on which
# `view_maps` solves the projection.
VIEW_CELLS, VIEW_HALF_EXTENT = 40, 1.18
VIEW_AXIS = ((np.arange(VIEW_CELLS) + 0.5) / VIEW_CELLS * 2 - 1) * VIEW_HALF_EXTENT


class Bump(NamedTuple):
    """A Gaussian bump: its center (x, y) and its standard deviations, in face units."""

    x: float
    y: float
    std_x: float
    std_y: float


def both_sides(x: float, y: float, std_x: float, std_y: float) -> list[Bump]:
    """A bump in each half of the face."""
    return [Bump(-x, y, std_x, std_y), Bump(x, y, std_x, std_y)]


def sum_of_bumps(bumps: list[Bump], weights: np.ndarray) -> np.ndarray:
    """(channels, GRID, GRID) sum of weight · bump in each cell; `weights` are (bumps, channels)."""
    table = np.array(bumps, dtype=np.float32)
    # A bump is the product of a profile in x and one in y.
    offset = (AXIS - table[:, :2, None]) / table[:, 2:, None]
    profile = np.exp(-0.5 * (offset * offset))
    across, down = profile[:, 0], profile[:, 1]
    weighted = (weights.T.astype(np.float32)[:, None, :] * down.T).reshape(-1, len(bumps))
    return (weighted @ across).reshape(-1, GRID, GRID)


def relief(identity: FaceIdentity) -> np.ndarray:
    """(GRID, GRID) float32 height of the face towards the camera, in face units."""
    eye_y, nose_y, mouth_y = identity.eye_y, identity.nose_base, identity.mouth_y
    ridge_y = (eye_y + nose_y) / 2
    # Bridge, ridge and tip of the nose, lips, hollow below them, chin, philtrum, forehead.
    weighted_bumps: list[tuple[Bump, float]] = [
        (Bump(identity.nose_bend / 2, eye_y + 0.03, 0.055, 0.13), 0.07 * identity.nose_bridge),
        (Bump(identity.nose_bend, ridge_y, 0.06, 0.13), 0.13 * identity.nose_projection),
        (
            Bump(0.0, nose_y - 0.05, 0.068 * identity.nose_tip, 0.075),
            0.17 * identity.nose_projection,
        ),
        (Bump(0.0, mouth_y, 0.20, 0.10), 0.05),
        (Bump(0.0, mouth_y + 0.14, 0.13, 0.04), -0.035),
        (Bump(0.0, identity.chin_length - 0.13, 0.13, 0.09), 0.07 * identity.chin_bump),
        (Bump(0.0, (nose_y + mouth_y) / 2, 0.025, 0.05), -0.015 * identity.philtrum),
        (Bump(0.0, -0.62, 0.36, 0.2), 0.05),
    ]
    # Wings of the nose, eye sockets, eyeballs, brow ridges, cheekbones, hollows of the cheeks.
    weighted_pairs: list[tuple[list[Bump], float]] = [
        (both_sides(0.75 * identity.nose_width, nose_y - 0.03, 0.045, 0.05), 0.055),
        (both_sides(identity.eye_spacing, eye_y, 0.13, 0.085), -0.075 * identity.socket_depth),
        (both_sides(identity.eye_spacing, eye_y, 0.07, 0.05), 0.02),
        (
            both_sides(0.22, eye_y - identity.brow_height + 0.04, 0.16, 0.05),
            0.035 * identity.brow_ridge,
        ),
        (both_sides(0.42, 0.13, 0.14, 0.10), 0.05 * identity.cheekbones),
        (both_sides(0.46, 0.45, 0.12, 0.14), -0.045 * identity.cheek_hollow),
    ]
    weighted_bumps += [(bump, weight) for pair, weight in weighted_pairs for bump in pair]
    bumps, weights = zip(*weighted_bumps, strict=True)
    skull = -0.55 * np.minimum(AXIS**2, 0.85) - 0.26 * np.minimum(AXIS**2, 1.1)[:, None]
    return skull + sum_of_bumps(list(bumps), np.array(weights)[:, None])[0]


def lighting(
    identity: FaceIdentity, capture: FaceCapture, height: np.ndarray, blotches: np.ndarray
) -> np.ndarray:
    """(GRID, GRID, 3) float32 factors for the paint's RGB, from the light and the skin's tints.

    Args:
        identity: the identity's factors.
        capture: the image's factors.
        height: (GRID, GRID) the face's relief.
        blotches: (n, n) standard normal numbers for the identity's uneven pigmentation.
    """
    # (light_x, light_y, light_z) points to the light; x to the right, y down, z to the camera.
    azimuth, elevation = math.radians(capture.light_azimuth), math.radians(capture.light_elevation)
    light_x = math.sin(azimuth) * math.cos(elevation)
    light_y, light_z = -math.sin(elevation), math.cos(azimuth) * math.cos(elevation)
    # The Sobel filter returns 8 times the difference between neighboring cells.
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8 / (AXIS[1] - AXIS[0]))
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8 / (AXIS[1] - AXIS[0]))
    normal_length = np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    tilt = light_x * slope_x + light_y * slope_y
    diffuse = np.maximum((light_z - tilt) / normal_length, 0.0)
    # About the cosine between the normal and a direction between the camera and the light.
    shine = (1.0 - 0.6 * tilt) / normal_length
    # shine ** 24; multiplications are faster than a power.
    gloss = np.square(np.square(np.square(shine * shine * shine)))
    hardness = capture.light_hardness
    light = (1.02 - 0.55 * hardness) + 0.80 * hardness * diffuse + 0.07 * hardness * gloss

    # Tints of the skin: shadow of the nose, cheeks, tip of the nose, bags under the eyes, eye
    # sockets, stubble on the chin and on the upper lip, and shadow on the neck.
    nose_shadow = Bump(-0.17 * light_x, identity.nose_base + 0.05 - 0.06 * light_y, 0.06, 0.07)
    bumps = [
        nose_shadow,
        *both_sides(0.40, 0.24, 0.15, 0.13),
        Bump(0.0, identity.nose_base - 0.04, 0.09, 0.08),
        *both_sides(identity.eye_spacing, identity.eye_y + 0.10, 0.11, 0.04),
        *both_sides(identity.eye_spacing, identity.eye_y - 0.05, 0.15, 0.06),
        Bump(0.0, 0.78, 0.42, 0.26),
        Bump(0.0, identity.mouth_y - 0.12, 0.17, 0.05),
        Bump(0.0, 1.25, 0.5, 0.16),
    ]
    redness = 0.10 * identity.rosy_cheeks + 0.12 * capture.makeup
    stubble = identity.stubble * (identity.masculinity > 0.5) * capture.beard_growth
    weights = np.array(
        [
            [-0.25 * hardness] * 3,
            *[[0.2 * redness, -redness, -0.8 * redness]] * 2,
            [0.02, -0.05, -0.04],
            *[[-0.13 * identity.bags, -0.16 * identity.bags, -0.11 * identity.bags]] * 2,
            *[[-0.06 * identity.socket_depth] * 3] * 2,
            [-0.25 * stubble, -0.22 * stubble, -0.17 * stubble],
            [-0.16 * stubble, -0.15 * stubble, -0.12 * stubble],
            [-0.4] * 3,
        ]
    )
    pigment = cv2.resize(blotches.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_LINEAR)
    light *= 1 + 0.05 * identity.blotches * pigment
    warm, green = 0.20 * capture.temperature, 0.07 * capture.tint
    gain = 2.0 ** (0.75 * capture.exposure) * np.array([1 + warm, 1 + green, 1 - warm])
    planes = (sum_of_bumps(bumps, weights) + 1) * (gain.astype(np.float32)[:, None, None] * light)
    return cv2.merge(list(planes))


def view_maps(
    capture: FaceCapture, height: np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two (image_size, image_size) float32 maps: each pixel's x and y on the canvas, in 0..1.

    A point (x, y) of height z appears at x cos(yaw) + z sin(yaw), y cos(pitch) + z sin(pitch), and
    is then rolled, zoomed and shifted. Positive yaw turns the face to the image's right, positive
    pitch downwards. For a pixel, the point and its z are unknown, so a few fixed-point iterations
    on a coarse grid solve the equation. The relief is smoothed first, because a steep slope would
    hide the points behind it.
    """
    height = cv2.blur(cv2.blur(height, (3, 3)), (3, 3))
    roll, yaw, pitch = (math.radians(angle) for angle in (capture.roll, capture.yaw, capture.pitch))
    cosine, sine = math.cos(roll) / capture.zoom, math.sin(roll) / capture.zoom
    cells_per_unit = GRID / (2 * HALF_EXTENT)
    # Without a shift, the middle of the image shows a point 0.02 below the middle of the canvas.
    across, down = VIEW_AXIS - capture.shift_x, (VIEW_AXIS + 0.02 - capture.shift_y)[:, None]
    # Coordinates of each pixel's point if its height were 0, in cells of the relief.
    flat_x = (cosine * across + sine * down) * (cells_per_unit / math.cos(yaw)) + (GRID / 2 - 0.5)
    flat_y = (cosine * down - sine * across) * (cells_per_unit / math.cos(pitch)) + (GRID / 2 - 0.5)
    flat_x, flat_y = flat_x.astype(np.float32), flat_y.astype(np.float32)
    x, y = flat_x, flat_y
    for _ in range(4):
        z = cv2.remap(height, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        x = flat_x - np.float32(cells_per_unit * math.tan(yaw)) * z
        y = flat_y - np.float32(cells_per_unit * math.tan(pitch)) * z
    size = (image_size, image_size)
    return cv2.resize((x + 0.5) / GRID, size), cv2.resize((y + 0.5) / GRID, size)
