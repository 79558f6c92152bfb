"""Random changes of training images.

AdaFace's crop, low resolution and photometric changes; also motion, flip and grayscale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import cv2
import numpy as np

_INTERPOLATIONS = (
    cv2.INTER_NEAREST,
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)
_CROP_ATTEMPTS = 10

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to an image, applied in the order of the fields.

    A probability of 0 disables a change. All random numbers come from the generator that is passed
    with each image.

    Attributes:
        motion: probability of a combined random rotation, scaling and shift; border pixels fill
            the areas that become empty.
        motion_rotation: maximum rotation in either direction, in degrees.
        motion_scale: minimum and maximum scale.
        motion_shift: maximum shift in either direction along each axis, as a fraction of the
            image's width or height.
        flip: probability of a horizontal flip.
        crop: probability of blackening everything outside a random rectangle.
        crop_area: minimum and maximum area of the rectangle, as a fraction of the image's area.
        crop_ratio: minimum and maximum width / height of the rectangle; the ratio is drawn
            log-uniformly.
        low_resolution: probability of shrinking the image to a small square and enlarging it again.
            Each of the two steps uses one of five OpenCV interpolations, chosen at random.
        low_resolution_side: minimum and maximum side of the small square, as a fraction of
            the image's height.
        photometric: probability of changing brightness, contrast and saturation in random order.
        brightness: range r of the brightness factor, which is uniform in [max(0, 1 − r), 1 + r];
            the factor scales all pixels.
        contrast: range r of the contrast factor, drawn likewise; the factor scales the difference
            of each pixel from the image's mean gray value.
        saturation: range r of the saturation factor, drawn likewise; the factor scales the
            difference of each pixel from its own gray value.
        gray: probability of converting to grayscale.

    Source: AdaFace (CVPR 2022), supplementary material and official code, for crop, low_resolution
    and photometric.

    >>> image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    >>> flipped = Augmentation(flip=1.0)(image, np.random.default_rng(0))
    >>> bool((flipped == image[:, ::-1]).all())
    True
    """

    motion: float = 0.0
    motion_rotation: float = 10.0
    motion_scale: tuple[float, float] = (0.9, 1.1)
    motion_shift: float = 0.05
    flip: float = 0.5
    crop: float = 0.0
    crop_area: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    low_resolution: float = 0.0
    low_resolution_side: tuple[float, float] = (0.2, 1.0)
    photometric: float = 0.0
    brightness: float = 0.5
    contrast: float = 0.5
    saturation: float = 0.5
    gray: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple | list):
                if len(value) != 2 or not 0 < value[0] <= value[1]:
                    raise ValueError(
                        f"augmentation {field.name} = {value!r}; give two positive numbers, "
                        "the smaller first"
                    )
            elif not value >= 0:
                raise ValueError(f"augmentation {field.name} = {value!r}; it must not be negative")
        for name in ("motion", "flip", "crop", "low_resolution", "photometric", "gray"):
            if getattr(self, name) > 1:
                raise ValueError(
                    f"augmentation {name} = {getattr(self, name)!r} is a probability; "
                    "give a number from 0 to 1"
                )
        if self.crop_area[1] > 1 or self.low_resolution_side[1] > 1:
            raise ValueError("augmentation crop_area and low_resolution_side must be at most 1")

    @classmethod
    def adaface(cls, **changes: Any) -> Augmentation:
        """AdaFace's probabilities: flip 0.5; crop, low_resolution and photometric 0.2 each.

        Args:
            changes: fields to set to other values.
        """
        return cls(**{"crop": 0.2, "low_resolution": 0.2, "photometric": 0.2, **changes})

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return the augmented (height, width, 3) uint8 RGB image; the input is not modified."""
        for probability, change in self._enabled_changes:
            if generator.random() < probability:
                image = change(image, generator)
        return image

    @cached_property
    def _enabled_changes(self) -> list[tuple[float, Change]]:
        """(probability, change) of the enabled changes, in the order of the fields."""
        changes = (
            (self.motion, self._move),
            (self.flip, self._flip),
            (self.crop, self._crop),
            (self.low_resolution, self._lower_resolution),
            (self.photometric, self._change_photometry),
            (self.gray, self._remove_color),
        )
        return [(probability, change) for probability, change in changes if probability > 0]

    def _move(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        angle = generator.uniform(-self.motion_rotation, self.motion_rotation)
        scale = generator.uniform(*self.motion_scale)
        shift = generator.uniform(-self.motion_shift, self.motion_shift, 2) * (width, height)
        # Pixel centers have integer coordinates, so the image's center is at (side - 1) / 2.
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += shift
        return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)

    def _flip(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return cv2.flip(image, 1)

    def _crop(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        top, left, height, width = self._random_rectangle(image.shape[0], image.shape[1], generator)
        inside = slice(top, top + height), slice(left, left + width)
        blackened = np.zeros_like(image)
        blackened[inside] = image[inside]
        return blackened

    def _random_rectangle(
        self, image_height: int, image_width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random rectangle inside the image."""
        min_log, max_log = (math.log(ratio) for ratio in self.crop_ratio)
        for _ in range(_CROP_ATTEMPTS):
            area = image_height * image_width * generator.uniform(*self.crop_area)
            ratio = math.exp(generator.uniform(min_log, max_log))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= image_width and 0 < height <= image_height:
                top = int(generator.integers(image_height - height + 1))
                left = int(generator.integers(image_width - width + 1))
                return top, left, height, width
        # No drawn rectangle fit into the image: use the largest centered one with an allowed ratio.
        ratio = min(max(image_width / image_height, self.crop_ratio[0]), self.crop_ratio[1])
        width = min(image_width, round(image_height * ratio))
        height = min(image_height, round(image_width / ratio))
        return (image_height - height) // 2, (image_width - width) // 2, height, width

    def _lower_resolution(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        side = max(1, int(generator.uniform(*self.low_resolution_side) * height))
        down, up = (
            _INTERPOLATIONS[index] for index in generator.integers(len(_INTERPOLATIONS), size=2)
        )
        small = cv2.resize(image, (side, side), interpolation=down)
        return cv2.resize(small, (width, height), interpolation=up)

    def _change_photometry(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        properties = ("brightness", "contrast", "saturation")
        for index in generator.permutation(len(properties)):
            name = properties[index]
            factor_range = getattr(self, name)
            factor = generator.uniform(max(0.0, 1 - factor_range), 1 + factor_range)
            if name == "brightness":
                image = _blend(image, 0.0, factor)
            elif name == "contrast":
                mean_gray = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
                # Round half up, as Pillow's contrast enhancement does.
                image = _blend(image, math.floor(mean_gray + 0.5), factor)
            else:
                gray = self._remove_color(image, generator)
                image = cv2.addWeighted(image, factor, gray, 1 - factor, 0)
        return image

    def _remove_color(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _blend(image: np.ndarray, gray_value: float, factor: float) -> np.ndarray:
    """factor · image + (1 − factor) · gray_value, clipped to 0..255."""
    table = np.clip(np.arange(256) * factor + (1 - factor) * gray_value, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
