"""The numbers behind a synthetic face: what makes the person, and what makes the picture.

Lengths are in units of half a face's height, from a point between the eyes and the mouth: x to the
right, y down, the chin near y = 1. Every factor is read off one uniform number, so a row of uniform
numbers is a person or a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

Factors = TypeVar("Factors")


def spans(low: float, high: float, *, power: float = 1.0, neutral: float | None = None) -> Any:
    """A factor spread over [low, high], evenly, or towards low for a power above 1."""
    middle = (low + high) / 2 if neutral is None else neutral
    return field(metadata={"row": (low, high - low, power, False, middle, 1.0)})


def around(centre: float, reach: float) -> Any:
    """A factor in [centre − reach, centre + reach], likelier near the centre (triangular)."""
    return field(metadata={"row": (centre, reach, 1.0, True, centre, 1.0)})


def chance() -> Any:
    """A number in [0, 1] that decides between alternatives, and so never fades to neutral."""
    return field(metadata={"row": (0.0, 1.0, 1.0, False, 0.0, 0.0)})


@lru_cache
def factor_table(kind: type) -> tuple[list[str], np.ndarray]:
    """The factors' names, and (6, factors) start, reach, power, is triangular, neutral, fades."""
    factors = fields(kind)
    return [factor.name for factor in factors], np.array(
        [factor.metadata["row"] for factor in factors], dtype=np.float64
    ).T


def from_uniforms(kind: type[Factors], uniforms: np.ndarray, strength: float = 1.0) -> Factors:
    """The factors that a row of uniform numbers stands for, drawn towards neutral by strength < 1.

    >>> from_uniforms(FaceCapture, np.full(CAPTURE_FACTORS, 0.9), strength=0.0).yaw
    0.0
    """
    names, (start, reach, power, triangular, neutral, fades) = factor_table(kind)
    off_centre = 2 * uniforms - 1
    peaked = np.sign(off_centre) * (1 - np.sqrt(1 - np.abs(off_centre)))
    value = start + reach * np.where(triangular, peaked, uniforms**power)
    value += fades * (1 - strength) * (neutral - value)
    return kind(**dict(zip(names, value.tolist(), strict=True)))


@dataclass(frozen=True, kw_only=True)
class FaceIdentity:
    """What stays with a person: about seventy continuous factors, most of them shapes."""

    cheek_width: float = spans(0.61, 0.78)
    temple_width: float = spans(0.87, 1.0)  # as a share of cheek_width, like jaw_width
    jaw_width: float = spans(0.68, 0.93)
    chin_width: float = spans(0.15, 0.38)
    chin_length: float = spans(0.93, 1.10)
    skull_height: float = spans(0.95, 1.10)
    asymmetry: float = around(0.0, 0.03)

    eye_spacing: float = spans(0.265, 0.355)  # from the middle line to the eye's centre
    eye_height: float = spans(-0.19, -0.07)
    eye_width: float = spans(0.115, 0.165)  # half of it, like mouth_width and nose_width
    eye_opening: float = spans(0.045, 0.085)
    eye_tilt: float = spans(-0.18, 0.24)
    eye_apex: float = spans(-0.4, 0.4)
    eye_roundness: float = spans(1.5, 3.2)
    lid_crease: float = spans(0.018, 0.06)
    lid_colour: float = spans(0.72, 1.0)
    iris_size: float = spans(0.062, 0.08)
    iris_hue: float = spans(0.0, 1.0)
    iris_lightness: float = spans(0.45, 1.15)
    lashes: float = spans(0.010, 0.028)
    bags: float = spans(0.0, 1.0, power=2.0)

    brow_height: float = spans(0.14, 0.24)  # above the eye
    brow_thickness: float = spans(0.018, 0.058)
    brow_arch: float = spans(0.0, 0.075)
    brow_angle: float = spans(-0.22, 0.18)
    brow_length: float = spans(0.16, 0.235)
    brow_shift: float = spans(-0.03, 0.035)
    brow_darkness: float = spans(0.35, 0.95)

    nose_base: float = spans(0.22, 0.38)
    nose_width: float = spans(0.095, 0.185)
    nose_tip: float = spans(0.7, 1.4)
    nose_bridge: float = spans(0.4, 1.5)
    nose_projection: float = spans(0.6, 1.5)
    nose_bend: float = around(0.0, 0.035)
    nostril_size: float = spans(0.6, 1.3)

    mouth_drop: float = spans(0.20, 0.30)  # below the nose's base
    mouth_width: float = spans(0.17, 0.285)
    upper_lip: float = spans(0.02, 0.068)
    lower_lip: float = spans(0.035, 0.09)
    lip_bow: float = spans(0.0, 0.028)
    mouth_curve: float = spans(-0.03, 0.03)
    lip_redness: float = spans(0.2, 1.0)
    philtrum: float = spans(0.0, 1.0)

    ear_size: float = spans(0.15, 0.25)
    ear_spread: float = spans(0.0, 0.10)
    cheekbones: float = spans(0.0, 1.6)
    cheek_hollow: float = spans(0.0, 1.4)
    socket_depth: float = spans(0.4, 1.5)
    brow_ridge: float = spans(0.0, 1.4)
    chin_bump: float = spans(0.3, 1.5)

    skin_tone: float = spans(0.0, 1.0)  # 0 darkest, 1 lightest
    skin_redness: float = spans(-1.0, 1.0)
    rosy_cheeks: float = spans(0.0, 1.0)
    blotches: float = spans(0.2, 1.0)
    freckles: float = spans(0.0, 1.0, power=3.0)
    moles: float = spans(0.0, 4.99)
    age: float = spans(0.0, 1.0, power=1.6)

    hair_darkness: float = spans(0.0, 1.0, power=0.7)
    hair_redness: float = spans(0.0, 1.0, power=2.5)
    hair_volume: float = spans(0.02, 0.2)
    hair_sides: float = spans(0.0, 0.16)
    hair_length: float = spans(0.0, 1.0)
    hair_curl: float = spans(0.0, 1.0, power=1.5)
    hair_part: float = spans(-1.0, 1.0)
    hairline: float = spans(-0.82, -0.55)
    recession: float = spans(0.0, 0.22)
    widow_peak: float = spans(-0.02, 0.1)
    fringe: float = spans(0.0, 1.0)
    masculinity: float = spans(0.0, 1.0)
    baldness: float = spans(0.0, 1.0)
    beard: float = spans(0.0, 1.0)
    moustache: float = spans(0.0, 1.0)
    stubble: float = spans(0.0, 1.0)
    glasses_habit: float = spans(0.0, 1.0)

    @property
    def mouth_height(self) -> float:
        return self.nose_base + self.mouth_drop


@dataclass(frozen=True, kw_only=True)
class FaceCapture:
    """What changes from picture to picture; each factor fades to neutral as nuisance goes to 0."""

    yaw: float = around(0.0, 42.0)  # degrees, like pitch, roll and the light's direction
    pitch: float = around(0.0, 24.0)
    roll: float = around(0.0, 13.0)
    shift_x: float = around(0.0, 0.10)
    shift_y: float = around(0.0, 0.10)
    zoom: float = around(1.0, 0.10)

    light_azimuth: float = spans(-85.0, 85.0)
    light_elevation: float = spans(-15.0, 65.0)
    light_hardness: float = spans(0.15, 0.9)
    exposure: float = around(0.0, 1.0)  # stops
    temperature: float = around(0.0, 1.0)
    tint: float = around(0.0, 1.0)
    contrast: float = around(1.0, 0.35)
    saturation: float = spans(0.55, 1.25, neutral=1.0)

    smile: float = spans(-0.35, 1.0, neutral=0.0)
    mouth_open: float = spans(0.0, 1.0, power=3.0, neutral=0.0)
    brow_raise: float = around(0.0, 1.0)
    eye_closure: float = spans(0.0, 1.0, power=5.0, neutral=0.0)
    gaze_x: float = around(0.0, 1.0)
    gaze_y: float = around(0.0, 0.6)

    glasses: float = chance()
    frame_width: float = spans(0.17, 0.24)
    frame_height: float = spans(0.11, 0.18)
    frame_roundness: float = spans(2.0, 5.0)
    frame_thickness: float = spans(0.012, 0.04)
    frame_lightness: float = spans(0.0, 1.0, power=2.5)

    hair_ruffle: float = spans(-1.0, 1.0)
    hair_parting: float = around(0.0, 0.5)
    beard_growth: float = spans(0.4, 1.3)
    makeup: float = spans(0.0, 1.0, power=2.0, neutral=0.0)

    def wears(self, identity: FaceIdentity, nuisance: float) -> str:
        """``none``, ``clear`` or ``dark`` glasses: habitual wearers mostly clear, others seldom."""
        clear = 0.7 if identity.glasses_habit < 0.2 else 0.1
        if self.glasses < 0.04 * nuisance:
            return "dark"
        return "clear" if self.glasses < (0.04 + clear) * nuisance else "none"


IDENTITY_FACTORS = len(fields(FaceIdentity))
CAPTURE_FACTORS = len(fields(FaceCapture))


class Pose(NamedTuple):
    """Degrees: yaw to the picture's right, pitch downwards, roll clockwise."""

    yaw: float
    pitch: float
    roll: float


class Light(NamedTuple):
    """Direction in degrees, hardness in [0, 1], exposure in stops, temperature in [−1, 1]."""

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
