"""Paint a synthetic face from the factors of a person and of a picture."""

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
    skin_colour,
)
from margrave.synthetic.hair import (
    hair_band,
    hair_colour,
    paint_back_hair,
    paint_beard,
    paint_front_hair,
)
from margrave.synthetic.relief import lighting, view_maps
from margrave.synthetic.surroundings import background, clothes_colour, paint_glasses


class Person(NamedTuple):
    """An identity's factors, with the fields of random numbers that are its own.

    Attributes:
        factors: shapes and colours.
        marks: (n, 3) uniform numbers, places and sizes of moles and freckles.
        blotches: (m, m) standard normal numbers, uneven pigment.
        strands: (k, 3) uniform numbers, how the hair falls.
        height: the face's relief, see `margrave.synthetic.relief.relief`.
    """

    factors: FaceIdentity
    marks: np.ndarray
    blotches: np.ndarray
    strands: np.ndarray
    height: np.ndarray


def render_face(
    person: Person,
    capture: FaceCapture,
    image_size: int,
    nuisance: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The pristine picture, (image_size, image_size, 3) uint8 RGB.

    The face is painted from the front, the view is found on its relief, and only the pixels seen
    are lit and laid over the background.

    Args:
        nuisance: strength of clothes' and background's variety, in [0, 1].
        rng: the picture's own generator: hair, clothes, background.
    """
    who = person.factors
    canvas = paint_face(person, capture, image_size, nuisance, rng)
    x, y = view_maps(capture, person.height, image_size)
    light = seen(lighting(who, capture, person.height, person.blotches), x, y)
    paint = seen(canvas.paint, x, y)
    shadow = cv2.cvtColor(seen(canvas.shadow, x, y), cv2.COLOR_GRAY2RGB)
    clear = cv2.cvtColor(255 - cv2.extractChannel(paint, 3), cv2.COLOR_GRAY2RGB)
    face = cv2.multiply(cv2.cvtColor(paint, cv2.COLOR_RGBA2RGB), shadow, scale=1 / 255)
    behind = cv2.multiply(background(rng, image_size, nuisance), clear, scale=1 / 255)
    light *= face.astype(np.float32)
    light += behind.astype(np.float32)
    return develop(light, capture)


def seen(raster: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A square raster of the whole canvas, sampled at the places 0..1 behind the pixels."""
    size = raster.shape[0]
    x, y = x * size - np.float32(0.5), y * size - np.float32(0.5)
    return cv2.remap(raster, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def paint_face(
    person: Person,
    capture: FaceCapture,
    image_size: int,
    nuisance: float,
    rng: np.random.Generator,
) -> FaceCanvas:
    """The unlit face from the front, from the back of the hair to the glasses."""
    who = person.factors
    canvas = FaceCanvas(image_size)
    skin, hair = skin_colour(who), hair_colour(who)
    band = hair_band(who, capture)
    face = outline(who)
    strands = person.strands + nuisance * 0.15 * (rng.random(person.strands.shape) - 0.5)
    strands = np.clip(strands, 0.0, 1.0)
    paint_back_hair(canvas, band, hair, mix(hair, (0, 0, 0), 0.6))
    paint_neck(canvas, who, skin, clothes_colour(rng.random(3), nuisance))
    paint_ears(canvas, who, skin)
    canvas.fill(face, skin)
    paint_skin_marks(canvas, who, skin, person.marks)
    paint_wrinkles(canvas, who, capture)
    paint_beard(canvas, who, capture, skin, hair, face, strands)
    paint_nose(canvas, who, capture)
    paint_mouth(canvas, who, capture, skin)
    paint_eyes(canvas, who, capture, skin)
    paint_brows(canvas, who, capture, skin, hair)
    paint_front_hair(canvas, who, band, hair, strands)
    paint_glasses(canvas, who, capture.wears(who, nuisance), capture)
    return canvas


def develop(scene: np.ndarray, capture: FaceCapture) -> np.ndarray:
    """Contrast about mid-grey and saturation, then a soft shoulder where light would clip."""
    mixing = np.full((3, 4), capture.contrast * (1 - capture.saturation) / 3, np.float32)
    mixing[:, :3] += capture.contrast * capture.saturation * np.eye(3, dtype=np.float32)
    mixing[:, 3] = 112 * (1 - capture.contrast)
    scene = cv2.transform(scene, mixing)
    base = cv2.threshold(scene, 200, 0, cv2.THRESH_TRUNC)[1]
    over = cv2.subtract(scene, base)
    base += cv2.divide(over, over + np.float32(90), scale=90)
    return np.clip(base, 0, 255).astype(np.uint8)
