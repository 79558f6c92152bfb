"""Degrade a face image by known amounts, from which its ground-truth quality is computed."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np

DEGRADATIONS = ("blur", "resolution", "noise", "occlusion", "compression")
MAX_QUALITY_LOSS = np.array([0.85, 0.92, 0.6, 0.8, 0.5])
"""Fraction of the quality that each degradation removes at severity 1."""
# A table from a random byte to a standard normal number; looking one up is much faster than
# sampling one.
NORMAL_QUANTILES = np.array([NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)], np.float32)
NUM_DEGRADATION_FACTORS = 1 + 2 * len(DEGRADATIONS) + 4
"""Number of uniform random numbers per image: one decides whether to degrade the image, five choose
the degradations, five give the severities, and four are the ``choices`` of `degrade`."""


class Degradation(NamedTuple):
    """The degradations of an image of `image_size` pixels, in physical units.

    Attributes:
        blur: standard deviation of the blur in pixels; 0 means no blur.
        resolution: side in pixels to which the image is reduced before it is enlarged again;
            `image_size` means no reduction.
        noise: standard deviation of the sensor noise in gray levels; 0 means no noise.
        occlusion: fraction of the face's bounding box that is covered; 0 means no occlusion.
        compression: JPEG quality, 1 to 100; 100 means no compression.
    """

    blur: float
    resolution: int
    noise: float
    occlusion: float
    compression: int


def severities(uniforms: np.ndarray, degraded_fraction: float, strength: float) -> np.ndarray:
    """(N, 5) severities in [0, 1] of the degradations, from (N, NUM_DEGRADATION_FACTORS) uniforms.

    An image is degraded with probability `degraded_fraction`. One uniform number per degradation
    then decides which are applied: the degradation with the smallest number, and all with a number
    below 0.25. A severity is `strength` times a uniform number in [0.1, 1].
    """
    count = len(DEGRADATIONS)
    choosing = uniforms[:, 1 : 1 + count]
    is_smallest = choosing == choosing.min(axis=1, keepdims=True)
    is_applied = (uniforms[:, :1] < degraded_fraction) & (is_smallest | (choosing < 0.25))
    severity = strength * (0.1 + 0.9 * uniforms[:, 1 + count : 1 + 2 * count])
    return np.where(is_applied, severity, 0.0)


def quality_of(severity: np.ndarray) -> np.ndarray:
    """Quality (...) of images with severities (..., 5): Π (1 − MAX_QUALITY_LOSS · severity^1.5).

    >>> float(quality_of(np.zeros(5)))
    1.0
    """
    return np.prod(1 - MAX_QUALITY_LOSS * severity**1.5, axis=-1)


def in_physical_units(severity: np.ndarray, image_size: int) -> Degradation:
    """Convert an image's severities (5,) to physical units."""
    severity_of = dict(zip(DEGRADATIONS, severity.tolist(), strict=True))
    low_resolution, compression = severity_of["resolution"], severity_of["compression"]
    reduced_size = max(4, round(image_size * 0.09**low_resolution))
    return Degradation(
        blur=4.5 * severity_of["blur"] * image_size / 112,
        resolution=reduced_size if low_resolution else image_size,
        noise=55.0 * severity_of["noise"],
        occlusion=0.55 * severity_of["occlusion"],
        compression=round(3 + 92 * (1 - compression) ** 1.5) if compression else 100,
    )


def degrade(
    image: np.ndarray, degradation: Degradation, choices: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Degrade an image in a camera's order: occlusion, blur, sampling, noise, compression.

    Args:
        image: (S, S, 3) uint8, RGB.
        degradation: the degradations in physical units.
        choices: (4,) uniform numbers that choose motion or focus blur, the angle of the motion, the
            occluder, and the side and height of a hand that occludes the face.
        rng: generates the noise and the occluder's texture.
    """
    if degradation.occlusion > 0:
        image = occlude(image, degradation.occlusion, choices[2], choices[3], rng)
    if degradation.blur > 0:
        image = _blur(image, degradation.blur, choices[0] < 0.5, math.pi * choices[1])
    size = image.shape[0]
    if degradation.resolution < size:
        small = (degradation.resolution, degradation.resolution)
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    if degradation.noise > 0:
        random_bytes = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
        grain = cv2.LUT(random_bytes, degradation.noise * NORMAL_QUANTILES)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
    if degradation.resolution < size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    if degradation.compression < 100:
        settings = [cv2.IMWRITE_JPEG_QUALITY, degradation.compression]
        # OpenCV takes the channels for BGR in both directions, so the result is RGB like the image.
        decoded = cv2.imdecode(cv2.imencode(".jpg", image, settings)[1], cv2.IMREAD_COLOR)
        assert decoded is not None
        image = decoded
    return image


def _blur(image: np.ndarray, sigma: float, is_motion: bool, angle: float) -> np.ndarray:
    """Blur by motion at `angle` (in radians) or by focus; `sigma` is the std in pixels."""
    if not is_motion:
        return cv2.GaussianBlur(image, (0, 0), sigma)
    # A uniform streak of length L has a standard deviation of L / √12.
    half_length = math.sqrt(12) * sigma / 2
    radius = math.ceil(half_length)
    # OpenCV's coordinates of the line have four fractional bits.
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
    x, y = round(16 * half_length * math.cos(angle)), round(16 * half_length * math.sin(angle))
    ends = [(16 * radius + sign * x, 16 * radius + sign * y) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 255, 1, cv2.LINE_AA, 4)
    return cv2.filter2D(
        image, -1, kernel / np.float32(kernel.sum()), borderType=cv2.BORDER_REPLICATE
    )


def occlude(
    image: np.ndarray, fraction: float, choice: float, side: float, rng: np.random.Generator
) -> np.ndarray:
    """Cover a part of the face with a mask, a scarf, a hand, a cap or a block.

    Args:
        image: (S, S, 3) uint8, RGB.
        fraction: fraction of the face's bounding box to cover.
        choice: a uniform number in [0, 1) that chooses the occluder.
        side: a uniform number in [0, 1) that chooses a hand's side (left below 0.5) and height;
            other occluders ignore it.
        rng: generates the occluder's color and texture, and the position of a block.
    """
    size = image.shape[0]
    texture = rng.random((7, 7, 3), dtype=np.float32)
    color = rng.random(3, dtype=np.float32)
    color = 255 * (0.5 * color.mean() + 0.5 * color)
    cover = np.zeros((size, size), np.uint8)
    texture_contrast = 0.15
    if choice < 0.4:  # mask or scarf, from below
        is_mask = choice < 0.2
        texture_contrast = 0.08 if is_mask else 0.7
        # The face's bounding box ends a little above the image's lower edge.
        edge = size * (0.97 - 0.9 * fraction)
        across = np.linspace(0, 1, 12)
        rise = 0.06 * size * np.sin(np.pi * across)
        rim = np.stack([across * size, edge - rise + 0.1 * size * is_mask], 1)
        shapes = [np.concatenate([rim, [(size, size), (0, size)]])]
    elif choice < 0.65:  # hand, with fingers from one side
        color = np.array((205, 155, 125), np.float32) * (0.4 + 0.6 * rng.random())
        texture_contrast, tip_angles = 0.3, np.linspace(-np.pi / 2, np.pi / 2, 7)
        shapes = []
        for finger in range(max(1, round(9 * fraction))):
            y = size * (0.15 + 0.4 * side + 0.125 * finger)
            reach = size * (0.62 + 0.08 * math.sin(1.3 * finger + 1))
            tip = np.stack(
                [reach + 0.05 * size * np.cos(tip_angles), y + 0.054 * size * np.sin(tip_angles)], 1
            )
            outline = np.concatenate([tip, [(0, y + 0.054 * size), (0, y - 0.054 * size)]])
            shapes.append(outline if side < 0.5 else (size, 0) + outline * (-1, 1))
    elif choice < 0.8:  # cap or banner, from above
        edge = size * (0.08 + 0.85 * fraction)
        shapes = [
            np.array([(0, 0), (size, 0), (size, edge * 0.9), (size / 2, edge * 1.1), (0, edge)])
        ]
    else:  # a block anywhere
        half = size * math.sqrt(0.7 * fraction) / 2
        center = size * (0.25 + 0.5 * rng.random(2))
        shapes = [center + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])]
    for shape in shapes:
        # OpenCV's coordinates have four fractional bits here.
        cv2.fillPoly(cover, [np.round(16 * shape).astype(np.int32)], 255, cv2.LINE_AA, 4)
    pattern = cv2.resize(texture, (size, size), interpolation=cv2.INTER_CUBIC) - 0.5
    occluder = color * (1 + texture_contrast * pattern)
    alpha = (cover / np.float32(255))[..., None]
    return np.clip(image + alpha * (occluder - image), 0, 255).astype(np.uint8)
