"""The factors of a synthetic face: those of the identity and those of the image.

Lengths are in face units; one is half the height of a face. The origin is between the eyes and the
mouth; x points to the right, y down, and the chin is near y = 1. Each factor is computed from one
uniform random number in [0, 1], so a row of such numbers determines an identity or an image. The
factors of an image are moved towards their neutral values as the nuisance decreases; at nuisance 0
they are neutral.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

Factors = TypeVar("Factors")

# The three functions below store a factor's parameters in the order that `factor_table` documents.


def uniform(low: float, high: float, *, power: float = 1.0, neutral: float | None = None) -> Any:
    """Declare a factor in [low, high], computed as low + (high − low) · u^power from a uniform u.

    Args:
        low: minimum.
        high: maximum.
        power: 1 is a uniform distribution; above 1, values concentrate at `low`, below 1 at `high`.
        neutral: the neutral value; by default the center of [low, high].
    """
    neutral = (low + high) / 2 if neutral is None else neutral
    return field(metadata={"parameters": (low, high - low, power, False, neutral, 1.0)})


def triangular(center: float, reach: float) -> Any:
    """Declare a triangularly distributed factor in center ± reach; the center is neutral."""
    return field(metadata={"parameters": (center, reach, 1.0, True, center, 1.0)})


def choice() -> Any:
    """Declare a uniform number in [0, 1] that chooses an alternative; it has no neutral value."""
    return field(metadata={"parameters": (0.0, 1.0, 1.0, False, 0.0, 0.0)})


@lru_cache
def factor_table(factor_class: type) -> tuple[list[str], np.ndarray]:
    """The names of a class's factors, and their (6, factors) parameters.

    The parameters are start, reach, power, is_triangular, neutral value and has_neutral.
    """
    factors = fields(factor_class)
    return [factor.name for factor in factors], np.array(
        [factor.metadata["parameters"] for factor in factors], dtype=np.float64
    ).T


def from_uniforms(
    factor_class: type[Factors], uniforms: np.ndarray, strength: float = 1.0
) -> Factors:
    """Compute factors from a row of uniform numbers; `strength` 0 gives their neutral values.

    >>> from_uniforms(FaceCapture, np.full(NUM_CAPTURE_FACTORS, 0.9), strength=0.0).yaw
    0.0
    """
    names, (start, reach, power, is_triangular, neutral, has_neutral) = factor_table(factor_class)
    off_center = 2 * uniforms - 1
    # The quantile function of the triangular distribution on [−1, 1].
    triangular_number = np.sign(off_center) * (1 - np.sqrt(1 - np.abs(off_center)))
    value = start + reach * np.where(is_triangular, triangular_number, uniforms**power)
    value += has_neutral * (1 - strength) * (neutral - value)
    return factor_class(**dict(zip(names, value.tolist(), strict=True)))


@dataclass(frozen=True, kw_only=True)
class FaceIdentity:
    """The factors of an identity: about seventy continuous values, mostly of shape.

    Widths and other horizontal lengths are half-widths, from the middle of a feature to its edge.
    """

    cheek_width: float = uniform(0.61, 0.78)
    temple_width: float = uniform(0.87, 1.0)  # as a fraction of cheek_width, like jaw_width
    jaw_width: float = uniform(0.68, 0.93)
    chin_width: float = uniform(0.15, 0.38)
    chin_length: float = uniform(0.93, 1.10)
    skull_height: float = uniform(0.95, 1.10)
    asymmetry: float = triangular(0.0, 0.03)  # positive moves chin and mouth to the right

    eye_spacing: float = uniform(0.265, 0.355)  # from the midline to the center of the eye
    eye_y: float = uniform(-0.19, -0.07)  # a coordinate, like nose_base and hairline
    eye_width: float = uniform(0.115, 0.165)
    eye_opening: float = uniform(0.045, 0.085)
    eye_tilt: float = uniform(-0.18, 0.24)  # a slope; positive raises the outer corner
    eye_apex: float = uniform(-0.4, 0.4)  # of the upper lid; negative is nearer to the nose
    eye_roundness: float = uniform(1.5, 3.2)
    lid_crease: float = uniform(0.018, 0.06)
    lid_lightness: float = uniform(0.72, 1.0)
    iris_size: float = uniform(0.062, 0.08)
    iris_hue: float = uniform(0.0, 1.0)
    iris_lightness: float = uniform(0.45, 1.15)
    lashes: float = uniform(0.010, 0.028)
    bags: float = uniform(0.0, 1.0, power=2.0)

    brow_height: float = uniform(0.14, 0.24)  # above the eye
    brow_thickness: float = uniform(0.018, 0.058)
    brow_arch: float = uniform(0.0, 0.075)
    brow_angle: float = uniform(-0.22, 0.18)  # positive raises the outer end
    brow_length: float = uniform(0.16, 0.235)
    brow_shift: float = uniform(-0.03, 0.035)  # positive is outwards
    brow_darkness: float = uniform(0.35, 0.95)

    nose_base: float = uniform(0.22, 0.38)
    nose_width: float = uniform(0.095, 0.185)
    nose_tip: float = uniform(0.7, 1.4)  # a strength, like nose_bridge
    nose_bridge: float = uniform(0.4, 1.5)
    nose_projection: float = uniform(0.6, 1.5)
    nose_bend: float = triangular(0.0, 0.035)
    nostril_size: float = uniform(0.6, 1.3)

    mouth_drop: float = uniform(0.20, 0.30)  # below the base of the nose
    mouth_width: float = uniform(0.17, 0.285)
    upper_lip: float = uniform(0.02, 0.068)
    lower_lip: float = uniform(0.035, 0.09)
    lip_bow: float = uniform(0.0, 0.028)
    mouth_curve: float = uniform(-0.03, 0.03)  # positive raises the corners
    lip_redness: float = uniform(0.2, 1.0)
    philtrum: float = uniform(0.0, 1.0)

    ear_size: float = uniform(0.15, 0.25)
    ear_spread: float = uniform(0.0, 0.10)
    cheekbones: float = uniform(0.0, 1.6)
    cheek_hollow: float = uniform(0.0, 1.4)
    socket_depth: float = uniform(0.4, 1.5)
    brow_ridge: float = uniform(0.0, 1.4)
    chin_bump: float = uniform(0.3, 1.5)

    skin_tone: float = uniform(0.0, 1.0)  # 0 is darkest, 1 lightest
    skin_redness: float = uniform(-1.0, 1.0)
    rosy_cheeks: float = uniform(0.0, 1.0)
    blotches: float = uniform(0.2, 1.0)
    freckles: float = uniform(0.0, 1.0, power=3.0)
    moles: float = uniform(0.0, 4.99)  # rounded down to a number of moles
    age: float = uniform(0.0, 1.0, power=1.6)

    hair_darkness: float = uniform(0.0, 1.0, power=0.7)
    hair_redness: float = uniform(0.0, 1.0, power=2.5)
    hair_volume: float = uniform(0.02, 0.2)
    hair_sides: float = uniform(0.0, 0.16)
    hair_length: float = uniform(0.0, 1.0)
    hair_curl: float = uniform(0.0, 1.0, power=1.5)
    hair_part: float = uniform(-1.0, 1.0)
    hairline: float = uniform(-0.82, -0.55)
    recession: float = uniform(0.0, 0.22)
    widow_peak: float = uniform(-0.02, 0.1)
    fringe: float = uniform(0.0, 1.0)
    masculinity: float = uniform(0.0, 1.0)
    baldness: float = uniform(0.0, 1.0)
    beard: float = uniform(0.0, 1.0)
    moustache: float = uniform(0.0, 1.0)
    stubble: float = uniform(0.0, 1.0)
    glasses_draw: float = uniform(0.0, 1.0)  # the lowest fifth wear glasses habitually

    @property
    def mouth_y(self) -> float:
        """y of the line between the lips."""
        return self.nose_base + self.mouth_drop


@dataclass(frozen=True, kw_only=True)
class FaceCapture:
    """The factors of an image: view, light, expression, glasses, hair style, beard and makeup."""

    yaw: float = triangular(0.0, 42.0)  # in degrees, like pitch, roll and the light's direction
    pitch: float = triangular(0.0, 24.0)
    roll: float = triangular(0.0, 13.0)
    shift_x: float = triangular(0.0, 0.10)  # in face units, like shift_y
    shift_y: float = triangular(0.0, 0.10)
    zoom: float = triangular(1.0, 0.10)

    light_azimuth: float = uniform(-85.0, 85.0)
    light_elevation: float = uniform(-15.0, 65.0)
    light_hardness: float = uniform(0.15, 0.9)
    exposure: float = triangular(0.0, 1.0)  # in units of 0.75 stops
    temperature: float = triangular(0.0, 1.0)  # positive is warm (reddish)
    tint: float = triangular(0.0, 1.0)  # positive is green, negative magenta
    contrast: float = triangular(1.0, 0.35)
    saturation: float = uniform(0.55, 1.25, neutral=1.0)

    smile: float = uniform(-0.35, 1.0, neutral=0.0)
    mouth_open: float = uniform(0.0, 1.0, power=3.0, neutral=0.0)
    brow_raise: float = triangular(0.0, 1.0)
    eye_closure: float = uniform(0.0, 1.0, power=5.0, neutral=0.0)
    gaze_x: float = triangular(0.0, 1.0)
    gaze_y: float = triangular(0.0, 0.6)

    glasses: float = choice()
    frame_width: float = uniform(0.17, 0.24)  # half the extent of a lens, like frame_height
    frame_height: float = uniform(0.11, 0.18)
    frame_roundness: float = uniform(2.0, 5.0)
    frame_thickness: float = uniform(0.012, 0.04)
    frame_lightness: float = uniform(0.0, 1.0, power=2.5)

    hair_ruffle: float = uniform(-1.0, 1.0)
    hair_part_shift: float = triangular(0.0, 0.5)
    beard_growth: float = uniform(0.4, 1.3)
    makeup: float = uniform(0.0, 1.0, power=2.0, neutral=0.0)

    def glasses_kind(self, identity: FaceIdentity, nuisance: float) -> str:
        """``none``, ``clear`` or ``dark``; clear glasses are rare except on habitual wearers."""
        is_habitual_wearer = identity.glasses_draw < 0.2
        clear_probability = 0.7 if is_habitual_wearer else 0.1
        if self.glasses < 0.04 * nuisance:
            return "dark"
        return "clear" if self.glasses < (0.04 + clear_probability) * nuisance else "none"


NUM_IDENTITY_FACTORS = len(fields(FaceIdentity))
NUM_CAPTURE_FACTORS = len(fields(FaceCapture))


class Pose(NamedTuple):
    """Head pose in degrees: yaw to the image's right, pitch downwards, roll clockwise."""

    yaw: float
    pitch: float
    roll: float


class Light(NamedTuple):
    """Light of an image.

    Attributes:
        azimuth: direction in degrees; positive is from the image's right.
        elevation: direction in degrees; positive is from above.
        hardness: 0 is diffuse light, 1 is hard light.
        exposure: in units of 0.75 stops; positive is brighter.
        temperature: in [−1, 1]; positive is warm (reddish).
    """

    azimuth: float
    elevation: float
    hardness: float
    exposure: float
    temperature: float


class Expression(NamedTuple):
    """Smile in [−0.35, 1], mouth opening and eye closure in [0, 1], brow raise in [−1, 1]."""

    smile: float
    mouth_open: float
    brow_raise: float
    eye_closure: float
