"""Render a synthetic face from the factors of an identity and an image."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from margrave.synthetic.canvas import FaceCanvas, mix
from margrave.synthetic.factors import FaceCapture, FaceIdentity
from margrave.synthetic.features import (
    outline,
    paint_brows,
    paint_ears,
    paint_eyes,
    paint_mouth,
    paint_neck,
    paint_nose,
    paint_skin_marks,
    paint_wrinkles,
    skin_color,
)
from margrave.synthetic.hair import (
    hair_band,
    hair_color,
    paint_back_hair,
    paint_beard,
    paint_front_hair,
)
from margrave.synthetic.relief import lighting, view_maps
from margrave.synthetic.surroundings import background, clothes_color, paint_glasses


class Appearance(NamedTuple):
    """The appearance of an identity: its factors and random details.

    Attributes:
        factors: the identity's factors.
        marks: (n, 3) uniform numbers for positions and sizes of moles and freckles.
        blotches: (m, m) standard normal numbers for uneven pigmentation.
        strands: (k, 3) uniform numbers for the strands of hair and beard.
        height: (GRID, GRID) the face's relief; see `margrave.synthetic.relief.relief`.
    """

    factors: FaceIdentity
    marks: np.ndarray
    blotches: np.ndarray
    strands: np.ndarray
    height: np.ndarray


def render_face(
    appearance: Appearance,
    capture: FaceCapture,
    image_size: int,
    nuisance: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Render an image without degradations, (image_size, image_size, 3) uint8 RGB.

    The face is painted in frontal view and then projected, which uses its relief and the head's
    pose. Light and background are applied after the projection, to the image's pixels only.

    Args:
        appearance: the identity's appearance.
        capture: the image's factors.
        image_size: height and width in pixels.
        nuisance: variation of clothes and background, in [0, 1].
        rng: the image's random generator for hair, clothes and background.
    """
    identity = appearance.factors
    canvas = paint_face(appearance, capture, image_size, nuisance, rng)
    x, y = view_maps(capture, appearance.height, image_size)
    light = sample(lighting(identity, capture, appearance.height, appearance.blotches), x, y)
    paint = sample(canvas.paint, x, y)
    shadow = cv2.cvtColor(sample(canvas.shadow, x, y), cv2.COLOR_GRAY2RGB)
    transparency = cv2.cvtColor(255 - cv2.extractChannel(paint, 3), cv2.COLOR_GRAY2RGB)
    face = cv2.multiply(cv2.cvtColor(paint, cv2.COLOR_RGBA2RGB), shadow, scale=1 / 255)
    # Only the background is multiplied, because the paint is already premultiplied.
    behind = cv2.multiply(background(rng, image_size, nuisance), transparency, scale=1 / 255)
    scene = light * face.astype(np.float32) + behind.astype(np.float32)
    return develop(scene, capture)


def sample(layer: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample a square layer of the canvas at each image pixel's coordinates (x, y) in 0..1."""
    size = layer.shape[0]
    x, y = x * size - np.float32(0.5), y * size - np.float32(0.5)
    return cv2.remap(layer, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def paint_face(
    appearance: Appearance,
    capture: FaceCapture,
    image_size: int,
    nuisance: float,
    rng: np.random.Generator,
) -> FaceCanvas:
    """Paint the unlit face in frontal view, from back (hair) to front (glasses)."""
    identity = appearance.factors
    canvas = FaceCanvas(image_size)
    skin, hair = skin_color(identity), hair_color(identity)
    band = hair_band(identity, capture)
    face = outline(identity)
    strands = appearance.strands + nuisance * 0.15 * (rng.random(appearance.strands.shape) - 0.5)
    strands = np.clip(strands, 0.0, 1.0)
    paint_back_hair(canvas, band, hair, mix(hair, (0, 0, 0), 0.6))
    paint_neck(canvas, identity, skin, clothes_color(rng.random(3), nuisance))
    paint_ears(canvas, identity, skin)
    canvas.fill(face, skin)
    paint_skin_marks(canvas, identity, skin, appearance.marks)
    paint_wrinkles(canvas, identity, capture)
    paint_beard(canvas, identity, capture, skin, hair, face, strands)
    paint_nose(canvas, identity, capture)
    paint_mouth(canvas, identity, capture, skin)
    paint_eyes(canvas, identity, capture, skin)
    paint_brows(canvas, identity, capture, skin, hair)
    paint_front_hair(canvas, identity, band, hair, strands)
    paint_glasses(canvas, identity, capture.glasses_kind(identity, nuisance), capture)
    return canvas


def develop(scene: np.ndarray, capture: FaceCapture) -> np.ndarray:
    """Apply saturation and contrast (around gray 112), then compress highlights above 200."""
    mixing = np.full((3, 4), capture.contrast * (1 - capture.saturation) / 3, np.float32)
    mixing[:, :3] += capture.contrast * capture.saturation * np.eye(3, dtype=np.float32)
    mixing[:, 3] = 112 * (1 - capture.contrast)
    scene = cv2.transform(scene, mixing)
    base = cv2.threshold(scene, 200, 0, cv2.THRESH_TRUNC)[1]
    over = cv2.subtract(scene, base)
    base += cv2.divide(over, over + np.float32(90), scale=90)
    return np.clip(base, 0, 255).astype(np.uint8)
