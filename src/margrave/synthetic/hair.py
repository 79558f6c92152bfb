"""Paint the hair, beard and moustache of a synthetic face.

Hair is a band between two curves, the silhouette and the hairline. Both curves run from the tips of
the hair on the left over the head to the tips on the right. Volume, length, parting, fringe, curl
and baldness shape the curves. Strands lie inside the band.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from margrave.synthetic.canvas import Color, FaceCanvas, curve, dim, mirrored, mix, shifted
from margrave.synthetic.factors import FaceCapture, FaceIdentity
from margrave.synthetic.features import ramp_color

# RGB colors, from light to dark.
HAIR_TONES = ((206, 172, 120), (150, 108, 66), (88, 58, 36), (48, 34, 26), (24, 20, 19))
# Positions along a strand, from 0 at its start to 1 at its end. Positions of strands: across the
# back hair from left to right, and along half of the moustache from the middle to the corner.
STRAND_STEPS = np.linspace(0.0, 1.0, 6)
BACK_STRANDS = np.linspace(0.04, 0.96, 18)[:, None]
MOUSTACHE_STRANDS = np.linspace(0.0, 1.0, 9)[:, None]


class HairBand(NamedTuple):
    """The band of hair.

    Attributes:
        outer: (points, 2) silhouette, in face units.
        inner: (points, 2) hairline, with points that correspond to those of the silhouette.
        tip_y: y of the tips of the hair, where the band ends on both sides; larger is lower.
    """

    outer: np.ndarray
    inner: np.ndarray
    tip_y: float


def hair_color(identity: FaceIdentity) -> Color:
    """The hair color; darker skin implies darker hair, and age turns it gray."""
    darkness = max(identity.hair_darkness, 1 - 1.1 * identity.skin_tone)
    color = mix(
        ramp_color(HAIR_TONES, min(1.0, darkness)), (150, 70, 34), 0.6 * identity.hair_redness
    )
    return mix(color, (186, 184, 180), max(0.0, 1.4 * identity.age - 0.55))


def hair_band(identity: FaceIdentity, capture: FaceCapture) -> HairBand:
    """The band of an identity's hair in one image."""
    masculine = identity.masculinity > 0.5
    tip_y = (
        (-0.10 + 0.32 * identity.hair_length) if masculine else (0.15 + 1.35 * identity.hair_length)
    )
    bald = masculine and identity.baldness > 0.86
    volume = 0.01 if bald else identity.hair_volume * (1 + 0.15 * capture.hair_ruffle)
    sides = (0.35 if masculine else 1.0) * identity.hair_sides + 0.01
    temple, cheek = identity.temple_width * identity.cheek_width, identity.cheek_width
    hairline = -0.985 * identity.skull_height if bald else identity.hairline
    fringe = 0.0 if bald else max(0.0, identity.fringe - 0.5) * 2
    fringe_y = hairline + fringe * 0.85 * (identity.eye_y - identity.brow_height - hairline)
    parting_x = 0.45 * identity.hair_part + 0.2 * capture.hair_part_shift
    peak = 0.0 if bald else identity.widow_peak * (1 - fringe)
    recession = 0.0 if bald else identity.recession * (1 - fringe) * (1.0 if masculine else 0.5)
    inner_x = cheek * (0.99 if masculine else 0.99 - 0.10 * identity.hair_length)
    outer_tip_x = cheek + sides + (0.0 if masculine else 0.12 * identity.hair_length)
    # The right halves of both curves, from the tips up to the middle.
    outer_half = [
        (outer_tip_x, tip_y),
        (cheek + sides, 0.45 * tip_y - 0.10),
        (temple + sides, -0.50),
        (0.72 * temple + 0.5 * sides, -0.86 * identity.skull_height - 0.5 * volume),
        (0.36 * temple, -0.99 * identity.skull_height - 0.95 * volume),
    ]
    inner_half = [
        (inner_x if masculine else 0.92 * inner_x, tip_y),
        (inner_x, 0.45 * tip_y - 0.10),
        (0.93 * temple, -0.42),
        (0.66 * temple, 0.5 * (fringe_y - 0.42) - 0.6 * recession),
        (0.34 * temple, fringe_y - recession),
    ]
    top = (0.3 * parting_x, -identity.skull_height - volume)
    middle = (parting_x * 0.6, fringe_y + peak)
    slant = 0.16 * parting_x * (0.4 + fringe)

    def full_curve(half: list[tuple[float, float]], crown: tuple[float, float]) -> np.ndarray:
        return curve([(-x, y) for x, y in half] + [crown] + half[::-1], steps=5)

    outer, inner = full_curve(outer_half, top), full_curve(inner_half, middle)
    # The slant of the hairline starts above y = −0.3 and is full above y = −0.5.
    slant_weight = np.clip(-0.3 - inner[:, 1], 0.0, 0.2) * 5
    if not bald:
        inner[:, 1] += slant * slant_weight * np.sin(3 * inner[:, 0])
    wave = 0.04 * identity.hair_curl * np.sin(np.arange(len(outer)) * 1.25 + 9 * identity.hair_part)
    outer *= 1 + wave[:, None] * (0.0 if bald else 1.0)
    return HairBand(outer, inner, tip_y)


def paint_back_hair(canvas: FaceCanvas, band: HairBand, hair: Color, strand_color: Color) -> None:
    """Paint the hair behind the neck if it reaches below the ears."""
    if band.tip_y > 0.2:
        canvas.fill(band.outer, dim(hair, 0.55))
        left, right = band.outer[0], band.outer[-1]
        tips = left * (1 - BACK_STRANDS) + right * BACK_STRANDS
        strands = np.stack([shifted(tips * (0.8, 0.5), 0.0, -0.2), shifted(tips, 0.0, -0.02)], 1)
        canvas.draw_strands(strands, strand_color)


def paint_front_hair(
    canvas: FaceCanvas, identity: FaceIdentity, band: HairBand, hair: Color, draws: np.ndarray
) -> None:
    """Paint the band and its strands.

    `draws` (n, 3) are three uniform random numbers in [0, 1] per strand: its position along the
    band, its depth in the band (0 at the silhouette, 1 at the hairline), and its variation.
    """
    region = np.concatenate([band.outer, band.inner[::-1]])
    # The hairline casts a shadow on the face, except near the tips.
    rim = band.inner[6:-6]
    canvas.shade(np.concatenate([rim, shifted(rim, 0.0, 0.045)[::-1]]), 0.22)
    canvas.soften_shadow()
    canvas.fill(region, hair)
    # Hair casts no shadow on itself.
    canvas.shade(region, 0.0)
    long = identity.masculinity <= 0.5 and identity.hair_length > 0.25
    start, layer = draws[:, 0], draws[:, 1]
    # At each step of a strand: its position along the band, and its depth in the band. A long
    # strand runs towards the parting at one depth; a short one runs towards the hairline.
    if long:
        origin = np.where(start < 0.5, start * 0.9, 1 - (1 - start) * 0.9)
        parting_position = 0.5 + 0.12 * identity.hair_part
        along = origin[:, None] + (parting_position - origin)[:, None] * STRAND_STEPS * 0.9
        depth = layer[:, None] + 0 * STRAND_STEPS
    else:
        sweep = 0.10 * identity.hair_part + 0.03
        along = start[:, None] + sweep * STRAND_STEPS * (0.4 + layer[:, None])
        depth = 0.5 * layer[:, None] + (0.35 + 0.3 * draws[:, 2:3]) * STRAND_STEPS
    ripple = 0.05 * identity.hair_curl * np.sin(STRAND_STEPS * 14 + 6 * draws[:, 2:3])
    depth = np.clip(depth + ripple, 0.0, 1.0)[..., None]
    index = np.clip(along + 0.3 * ripple, 0.0, 1.0) * (len(band.outer) - 1)
    floor_index = np.minimum(index.astype(int), len(band.outer) - 2)
    fraction = (index - floor_index)[..., None]
    outer = band.outer[floor_index] * (1 - fraction) + band.outer[floor_index + 1] * fraction
    inner = band.inner[floor_index] * (1 - fraction) + band.inner[floor_index + 1] * fraction
    strands = outer * (1 - depth) + inner * depth
    third = len(strands) // 3
    canvas.draw_strands(strands[:third], dim(hair, 0.72))
    canvas.draw_strands(strands[third : 2 * third], mix(hair, (255, 240, 215), 0.13))
    canvas.draw_strands(strands[2 * third :], dim(hair, 0.85))


def paint_beard(
    canvas: FaceCanvas,
    identity: FaceIdentity,
    capture: FaceCapture,
    skin: Color,
    hair: Color,
    face: np.ndarray,
    draws: np.ndarray,
) -> None:
    """Paint a full beard, goatee, moustache or nothing, depending on the identity.

    A beard covers the lips, so the mouth must be painted afterwards.

    Args:
        canvas: the canvas.
        identity: the identity's factors.
        capture: the image's factors.
        skin: color of the skin.
        hair: color of the hair.
        face: (points, 2) outline of the face.
        draws: (n, 3) uniform random numbers in [0, 1] for positions and lengths of strands.
    """
    if identity.masculinity <= 0.5:
        return
    opacity = min(0.95, 0.72 * capture.beard_growth)
    color = mix(skin, dim(hair, 0.7), opacity)
    mouth_y, mouth_half_width, nose_y = identity.mouth_y, identity.mouth_width, identity.nose_base
    is_full_beard = identity.beard > 0.72
    if identity.beard > 0.58:
        beard_half_width = identity.cheek_width if is_full_beard else mouth_half_width + 0.12
        top_y = 0.12 if is_full_beard else mouth_y - 0.04
        rim = face[(face[:, 1] > top_y) & (np.abs(face[:, 0]) <= beard_half_width + 0.01)]
        right, left = rim[rim[:, 0] >= 0], rim[rim[:, 0] < 0]
        below_lip_y = mouth_y + identity.lower_lip + 0.05
        inner = curve(
            [
                (-0.80 * beard_half_width, top_y + 0.10),
                (-mouth_half_width - 0.07, mouth_y - 0.03),
                (-0.55 * mouth_half_width, below_lip_y),
                (0.0, below_lip_y + 0.02),
                (0.55 * mouth_half_width, below_lip_y),
                (mouth_half_width + 0.07, mouth_y - 0.03),
                (0.80 * beard_half_width, top_y + 0.10),
            ]
        )
        canvas.fill(np.concatenate([inner, right, left]), color)
        anchors = inner[(draws[:, 0] * (len(inner) - 1)).astype(int)]
        roots = anchors * (1.0, 0.94) + (0.0, 0.04)
        tips = roots + np.stack([0.10 * (draws[:, 1] - 0.5), 0.03 + 0.16 * draws[:, 2]], 1)
        strands = np.stack([roots, tips], 1)
        canvas.draw_strands(strands[::2], dim(color, 0.7))
        canvas.draw_strands(strands[1::2], mix(color, skin, 0.3))
    if identity.moustache > 0.6 or is_full_beard:
        thickness = 0.5 + 0.5 * identity.moustache
        half_outline = [
            (0.0, nose_y + 0.05),
            (0.6 * mouth_half_width, nose_y + 0.06 + 0.03 * (1 - thickness)),
            (mouth_half_width + 0.07, mouth_y + 0.03 * thickness),
            (0.8 * mouth_half_width, mouth_y - 0.005),
            (0.0, mouth_y - 0.5 * identity.upper_lip),
        ]
        canvas.fill(mirrored(curve(half_outline, closed=True)), color)
        upper = (0.03, nose_y + 0.06) + MOUSTACHE_STRANDS * (mouth_half_width, 0.04)
        lower = shifted(upper, 0.04, 0.7 * (mouth_y - nose_y) - 0.06)
        hairs = np.stack([upper, lower], 1)
        canvas.draw_strands(np.concatenate([hairs, hairs * (-1.0, 1.0)]), dim(color, 0.8))
