"""Paint glasses, and generate the color of the clothes and the background."""

from __future__ import annotations

import cv2
import numpy as np

from margrave.synthetic.canvas import Color, FaceCanvas, dim, mirrored, ribbon, shifted
from margrave.synthetic.factors import FaceCapture, FaceIdentity


def paint_glasses(
    canvas: FaceCanvas, identity: FaceIdentity, kind: str, capture: FaceCapture
) -> None:
    """Paint glasses of the kind ``none``, ``clear`` or ``dark``; dark lenses hide the eyes."""
    if kind == "none":
        return
    frame_color = (215 * capture.frame_lightness + 18, 190 * capture.frame_lightness + 16, 40.0)
    # The outline of a lens is a superellipse.
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    power = 2 / capture.frame_roundness
    shape = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * capture.frame_width,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * capture.frame_height,
        ],
        1,
    )
    # The lenses must not touch each other.
    half_width = min(capture.frame_width, identity.eye_spacing - 0.03)
    shape[:, 0] *= half_width / capture.frame_width
    y, center_x = identity.eye_y + 0.03, identity.eye_spacing + 0.01
    lenses = mirrored(shifted(shape, center_x, y))
    # The lower halves of both outlines cast a shadow.
    canvas.draw_creases(shifted(lenses[:, :13], 0.0, 0.03), 0.18)
    if kind == "dark":
        canvas.fill(lenses, dim(frame_color, 0.35))
        # The face's shadows do not show through dark lenses.
        canvas.shade(lenses, 0.0)
    streak = np.array([(-0.45 * half_width, y - 0.02), (-0.45 * half_width + 0.10, y - 0.08)])
    glare = np.stack([shifted(streak, -center_x, 0.0), shifted(streak, center_x, 0.0)])
    canvas.fill(ribbon(glare, 0.012), (120, 125, 130) if kind == "dark" else (225, 225, 225))
    rims = np.concatenate([lenses, lenses[:, :1]], axis=1)
    canvas.fill(ribbon(rims, capture.frame_thickness), frame_color)
    arm = np.array([(center_x + half_width, y - 0.03), (identity.cheek_width, y - 0.06)])
    canvas.fill(mirrored(ribbon(arm, capture.frame_thickness)), frame_color)
    inner_x = center_x - half_width
    bridge = np.array([(-inner_x, y - 0.02), (0.0, y - 0.045), (inner_x, y - 0.02)])
    canvas.fill(ribbon(bridge, capture.frame_thickness), frame_color)


def clothes_color(draws: np.ndarray, nuisance: float) -> Color:
    """The color of the clothes, from (3,) uniform numbers; dark gray for nuisance 0."""
    muted = 0.4 * draws.mean() + 0.6 * draws
    red, green, blue = 90 + nuisance * (200 * muted - 70)
    return (float(red), float(green), float(blue))


def background(rng: np.random.Generator, image_size: int, nuisance: float) -> np.ndarray:
    """(image_size, image_size, 3) uint8 background: a blurred room, blocks, stripes or a wall.

    Args:
        rng: the image's random generator.
        image_size: height and width in pixels.
        nuisance: variation in [0, 1]; 0 gives the same flat gray for every image.
    """
    kind = int(rng.integers(4))  # blurred room, blocks, stripes, wall
    cells = int(rng.integers(2, 9))
    base, wave, draws = rng.random(3), rng.random(3), rng.random((cells, cells, 3))
    contrast = (0.9, 0.7, 0.25, 0.15)[kind]
    patches = base + contrast * (draws - 0.5)
    patches = 0.55 * patches.mean(axis=2, keepdims=True) + 0.45 * patches
    patches = np.clip(255 * (0.5 + nuisance * (patches - 0.5)), 0, 255).astype(np.uint8)
    interpolation = cv2.INTER_NEAREST if kind == 1 else cv2.INTER_CUBIC
    scene = cv2.resize(patches, (image_size, image_size), interpolation=interpolation)
    if kind == 2:
        axis = np.linspace(0, 1, image_size, dtype=np.float32)
        frequency, slant, amplitude = wave
        phase = (20 + 60 * frequency) * (axis * slant + axis[:, None] * (1 - slant))
        stripes = (127 + 60 * nuisance * amplitude * np.sin(phase)).astype(np.uint8)
        scene = cv2.addWeighted(scene, 1.0, cv2.merge([stripes] * 3), 1.0, -127.0)
    return scene
