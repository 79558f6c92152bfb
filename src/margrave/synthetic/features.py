"""Paint the features of a synthetic face in frontal view.

Each function paints one feature on a canvas, from the factors of an identity and an image.
"""

from __future__ import annotations

import numpy as np

from margrave.synthetic.canvas import Color, FaceCanvas, curve, dim, mirrored, mix, ribbon, shifted
from margrave.synthetic.factors import FaceCapture, FaceIdentity

# RGB colors, from dark to light.
SKIN_TONES = ((66, 41, 30), (112, 72, 50), (160, 112, 83), (201, 153, 122), (231, 193, 168))
IRIS_COLORS = ((58, 36, 24), (84, 56, 30), (104, 92, 52), (92, 112, 84), (96, 126, 152))
SIDES = np.array((-1.0, 1.0))[:, None]
"""(2, 1) sign of x in the left and in the right half of the image."""
ACROSS = np.linspace(-1.0, 1.0, 11)
"""Positions across an eye or a brow, from its inner end (−1) to its outer end (1)."""
CIRCLE_ANGLES = np.linspace(0, 2 * np.pi, 9)
NOSTRIL = np.stack([np.cos(CIRCLE_ANGLES), np.sin(CIRCLE_ANGLES) - 0.4 * np.cos(CIRCLE_ANGLES)], 1)
"""(9, 2) outline of the right nostril, a sheared unit circle around (0, 0)."""


def ramp_color(ramp: tuple[Color, ...], position: float) -> Color:
    """The color at `position` (0..1) of a piecewise linear ramp."""
    scaled = position * (len(ramp) - 1)
    stop = min(int(scaled), len(ramp) - 2)
    return mix(ramp[stop], ramp[stop + 1], scaled - stop)


def skin_color(identity: FaceIdentity) -> Color:
    red, green, blue = ramp_color(SKIN_TONES, identity.skin_tone)
    flush = 0.05 * identity.skin_redness
    return (min(255, red * (1 + flush)), green * (1 - flush), blue * (1 - 0.6 * flush))


def outline(identity: FaceIdentity) -> np.ndarray:
    """(points, 2) closed outline of the face, clockwise from the top of the skull."""
    cheek = identity.cheek_width
    right = [
        (0.62 * cheek, -0.93 * identity.skull_height),
        (identity.temple_width * cheek, -0.48),
        (cheek, 0.02),
        (0.5 * (1 + identity.jaw_width) * cheek, 0.36),
        (identity.jaw_width * cheek * 0.93, 0.60),
        (
            0.5 * (identity.chin_width + identity.jaw_width * cheek * 0.86),
            0.83 * identity.chin_length,
        ),
        (0.62 * identity.chin_width, 0.975 * identity.chin_length),
    ]
    left = [(-x + identity.asymmetry * y, y) for x, y in reversed(right)]
    top, chin = (0.0, -identity.skull_height), (identity.asymmetry, identity.chin_length)
    return curve([top, *right, chin, *left], closed=True)


def paint_neck(canvas: FaceCanvas, identity: FaceIdentity, skin: Color, clothes: Color) -> None:
    half_width = 0.40 + 0.16 * identity.masculinity * identity.jaw_width
    neck = [(-half_width, 0.5), (half_width, 0.5), (half_width, 1.15), (half_width + 0.2, 1.5)]
    neck += [(-half_width - 0.2, 1.5), (-half_width, 1.15)]
    canvas.fill(np.array(neck), dim(skin, 0.72))
    tip_x = half_width + 0.06
    collar = [(-1.5, 1.27), (-tip_x, 1.10), (0.0, 1.28), (tip_x, 1.10), (1.5, 1.27)]
    canvas.fill(np.array([*collar, (1.5, 1.5), (-1.5, 1.5)]), clothes)


def paint_ears(canvas: FaceCanvas, identity: FaceIdentity, skin: Color) -> None:
    inner_x = identity.cheek_width
    outer_x = inner_x + 0.02 + identity.ear_spread
    top, bottom = (
        identity.eye_y - 0.4 * identity.ear_size,
        identity.eye_y + 1.6 * identity.ear_size,
    )
    ear = curve(
        [
            (inner_x * 0.94, top),
            (outer_x + 0.03, top - 0.02),
            (outer_x + 0.05, 0.6 * top + 0.4 * bottom),
            (outer_x, 0.2 * top + 0.8 * bottom),
            (inner_x * 0.95, bottom),
        ]
    )
    canvas.fill(mirrored(ear), dim(skin, 0.9))
    canvas.draw_creases(mirrored(ear[4:-3] * (0.97, 1.0)), 0.3)


def paint_skin_marks(
    canvas: FaceCanvas, identity: FaceIdentity, skin: Color, marks: np.ndarray
) -> None:
    """Paint freckles and moles; `marks` (n, 3) are uniform numbers for positions and sizes.

    The first six rows are for moles (at most four are used), the other rows for freckles.
    """
    moles, freckles = marks[: int(identity.moles)], marks[6:]
    freckles = freckles[: int(identity.freckles * len(freckles))]
    if len(freckles):
        positions = (freckles[:, :2] - (0.5, 0.0)) * (1.1, 0.36) - (0.0, 0.02)
        canvas.fill_discs(positions, 0.006 + 0.007 * freckles[:, 2], mix(skin, dim(skin, 0.6), 0.5))
    if len(moles):
        positions = (moles[:, :2] - (0.5, 0.35)) * (0.95, 1.05)
        positions[:, 0] *= 1 - 0.6 * np.maximum(0.0, positions[:, 1])
        brown = mix(dim(skin, 0.4), (60, 35, 28), 0.4)
        canvas.fill_discs(positions, 0.008 + 0.010 * moles[:, 2] ** 2, brown)


def paint_wrinkles(canvas: FaceCanvas, identity: FaceIdentity, capture: FaceCapture) -> None:
    """Paint nose-to-mouth folds, forehead lines and crow's feet; age and expression deepen them."""
    smile = max(0.0, capture.smile)
    fold = curve(
        [
            (identity.nose_width + 0.02, identity.nose_base - 0.05),
            (identity.nose_width + 0.09, identity.nose_base + 0.08),
            (identity.mouth_width + 0.08, identity.mouth_y - 0.02 - 0.04 * smile),
        ]
    )
    canvas.draw_creases(mirrored(fold), min(0.6, 0.08 + 0.22 * identity.age + 0.26 * smile))
    if identity.age > 0.35:
        start = np.array((identity.eye_spacing + identity.eye_width * 1.2, identity.eye_y))
        crows_feet = np.stack(
            [np.stack([start, shifted(start, 0.09, dy)]) for dy in (-0.04, 0.0, 0.04)]
        )
        both_sides = np.concatenate([crows_feet, crows_feet * (-1.0, 1.0)])
        canvas.draw_creases(both_sides, 0.25 * identity.age)
    forehead_depth = 0.28 * identity.age + 0.25 * max(0.0, capture.brow_raise)
    if forehead_depth > 0.08:
        y = identity.eye_y - identity.brow_height - 0.13
        line = curve([(-0.28, y), (0.0, y + 0.02), (0.28, y)])
        canvas.draw_creases(
            np.stack([shifted(line, 0.0, -0.085 * row) for row in range(3)]), 0.7 * forehead_depth
        )


def eye_curves(identity: FaceIdentity, capture: FaceCapture) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the upper and of the lower lids, each (2, points, 2).

    The axes are: eye (left, right), point (from the inner to the outer corner), and (x, y).
    """
    closure = min(1.0, capture.eye_closure + 0.25 * max(0.0, capture.smile))
    opening = identity.eye_opening * (1 - closure) * (1 + 0.15 * capture.brow_raise)
    # The position across the eye, warped to be 0 at the lid's highest point.
    from_apex = ACROSS - 0.35 * identity.eye_apex * (1 - ACROSS**2)
    upper = -opening * (1 - np.abs(from_apex) ** identity.eye_roundness)
    lower = 0.62 * identity.eye_opening * (1 - 0.3 * closure) * (1 - ACROSS**2) ** 0.8
    x = SIDES * (identity.eye_spacing + identity.eye_width * ACROSS)
    y = (
        identity.eye_y
        + SIDES * 0.5 * identity.asymmetry
        - identity.eye_tilt * identity.eye_width * ACROSS
    )
    return np.stack([x, y + upper], 2), np.stack([x, y + lower], 2)


def between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Outlines of N areas, (N, 2 · points, 2); area i lies between first[i] and second[i]."""
    return np.concatenate([first, second[:, ::-1]], axis=1)


def paint_eyes(
    canvas: FaceCanvas, identity: FaceIdentity, capture: FaceCapture, skin: Color
) -> None:
    """Paint the white, iris and highlight, then the lids, which cover parts of them."""
    upper, lower = eye_curves(identity, capture)
    iris = dim(ramp_color(IRIS_COLORS, identity.iris_hue), identity.iris_lightness)
    lid = dim(skin, identity.lid_lightness * (1 - 0.25 * capture.makeup))
    lash = mix(dim(skin, 0.3), (22, 16, 14), 0.7)
    eye_centers = np.concatenate(
        [SIDES * identity.eye_spacing, identity.eye_y + 0.5 * SIDES * identity.asymmetry], 1
    )
    iris_centers = shifted(eye_centers, 0.035 * capture.gaze_x, 0.02 * capture.gaze_y)
    glint_x = 0.026 if capture.light_azimuth > 0 else -0.026
    canvas.fill(between(upper, lower), mix((226, 220, 214), skin, 0.28))
    canvas.fill_discs(iris_centers, identity.iris_size, iris)
    canvas.fill_discs(iris_centers, 0.42 * identity.iris_size, (14, 10, 10))
    canvas.fill_discs(shifted(iris_centers, glint_x, -0.024), 0.015, (240, 240, 240))
    crease = shifted(upper, 0.0, -identity.lid_crease - 0.03 * capture.eye_closure)
    crease[..., 1] -= 0.02 * np.cos(1.4 * ACROSS)
    # The iris is painted as a full disc; skin now covers the parts of it outside the eye.
    cover = [
        between(lower, shifted(lower, 0.0, 0.08)),
        between(upper, shifted(crease, 0.0, -0.05)),
    ]
    canvas.fill(np.concatenate(cover), skin)
    canvas.fill(between(upper, crease), lid)
    canvas.draw_creases(lower, 0.35)
    lash_width = identity.lashes * (1 + capture.makeup) * (0.85 + 0.4 * ACROSS)
    canvas.fill(ribbon(upper, lash_width), lash)
    canvas.draw_creases(crease[:, 1:], 0.36)
    canvas.draw_creases(shifted(lower[:, 2:], 0.0, 0.045), 0.10 + 0.25 * identity.bags)
    canvas.shade(between(upper, shifted(upper, 0.0, 0.022)), 0.35)


def paint_brows(
    canvas: FaceCanvas, identity: FaceIdentity, capture: FaceCapture, skin: Color, hair: Color
) -> None:
    color = mix(skin, dim(hair, 0.75), identity.brow_darkness)
    thickness = identity.brow_thickness * (0.8 + 0.25 * (1 - ACROSS)) * (1 - 0.8 * ACROSS**8)
    x = SIDES * (identity.eye_spacing + identity.brow_shift + identity.brow_length * ACROSS)
    y = (
        identity.eye_y
        - identity.brow_height
        - 0.05 * capture.brow_raise
        + 0.8 * SIDES * identity.asymmetry
    )
    line_y = (
        y - identity.brow_arch * (1 - (ACROSS - 0.25) ** 2) - identity.brow_angle * 0.2 * ACROSS
    )
    upper = np.stack([x, line_y - thickness / 2], 2)
    lower = np.stack([x, line_y + thickness / 2], 2)
    canvas.fill(between(upper, lower), color)
    lean = np.stack([SIDES * 0.03, SIDES * 0.0], 2)
    hairs = np.stack([lower[:, :-1] - lean, shifted(upper[:, :-1], 0.0, -0.012) + lean], 2)
    canvas.draw_strands(hairs.reshape(-1, 2, 2), dim(color, 0.82))
    canvas.shade(between(lower, shifted(lower, 0.0, 0.05)), 0.10)


def paint_nose(canvas: FaceCanvas, identity: FaceIdentity, capture: FaceCapture) -> None:
    """Paint the nostrils, the wings, the shadow below the nose, and lines beside its ridge."""
    base = identity.nose_base
    half_width = identity.nose_width * (1 + 0.08 * max(0.0, capture.smile))
    tip = base + 0.025 * identity.nose_tip + 0.02
    shadow = curve(
        [(-0.8 * half_width, base), (0.0, tip), (0.8 * half_width, base), (0.0, base + 0.075)],
        closed=True,
    )
    canvas.shade(shadow, 0.16)
    hole = NOSTRIL * np.array((0.24 * half_width, 0.022)) * identity.nostril_size
    canvas.shade(mirrored(shifted(hole, 0.46 * half_width, base - 0.005)), 0.72)
    wing = [
        (0.86 * half_width, base - 0.13),
        (1.06 * half_width, base - 0.05),
        (0.98 * half_width, base + 0.01),
        (0.70 * half_width, base + 0.012),
    ]
    canvas.draw_creases(mirrored(curve(wing)), 0.32)
    beside_ridge = [
        (0.10, identity.eye_y - 0.08),
        (0.085, 0.5 * (identity.eye_y + base)),
        (0.45 * half_width, base - 0.12),
    ]
    canvas.draw_creases(
        shifted(mirrored(curve(beside_ridge)), identity.nose_bend, 0.0),
        0.09 * identity.nose_bridge,
    )


def paint_mouth(
    canvas: FaceCanvas, identity: FaceIdentity, capture: FaceCapture, skin: Color
) -> None:
    """Paint lips around a dark opening with teeth; a smile raises and spreads the corners."""
    y, middle_x = identity.mouth_y, identity.asymmetry
    half_width = identity.mouth_width * (1 + 0.20 * capture.smile)
    corner_y = y - 0.6 * identity.mouth_curve - 0.045 * capture.smile
    gap = 0.17 * capture.mouth_open + 0.035 * max(0.0, capture.smile - 0.35)
    lip = mix(dim(skin, 0.86), (168, 72, 72), 0.30 * identity.lip_redness + 0.35 * capture.makeup)
    left, right = (middle_x - half_width, corner_y), (middle_x + half_width, corner_y)
    gap_top, gap_bottom, peak_x = y - 0.25 * gap, y + 0.75 * gap, 0.28 * half_width
    upper_lip_top, lower_lip_bottom = gap_top - identity.upper_lip, gap_bottom + identity.lower_lip
    notch = (middle_x, upper_lip_top + identity.lip_bow)
    cupids_bow = [(middle_x - peak_x, upper_lip_top), notch, (middle_x + peak_x, upper_lip_top)]
    upper_edge = curve([left, *cupids_bow, right])
    upper_seam = curve([left, (middle_x, gap_top), right], steps=10)
    lower_seam = curve([left, (middle_x, gap_bottom), right], steps=10)
    swell_y = lower_lip_bottom - 0.012
    swell = [(middle_x - 0.5 * half_width, swell_y), (middle_x + 0.5 * half_width, swell_y)]
    lower_edge = curve([left, *swell, right], steps=6)
    canvas.fill(np.concatenate([lower_seam, lower_edge[::-1]]), lip)
    canvas.fill(np.concatenate([upper_edge, upper_seam[::-1]]), dim(lip, 0.84))
    if gap > 0.012:
        canvas.fill(np.concatenate([upper_seam, lower_seam[::-1]]), (58, 24, 24))
        teeth_top = upper_seam[2:-2]
        teeth_bottom = teeth_top.copy()
        height = min(0.06, 0.7 * gap)
        teeth_bottom[:, 1] += height * np.sin(np.linspace(0.15, 3.0, len(teeth_top)))
        teeth = np.concatenate([teeth_top, teeth_bottom[::-1]])
        canvas.fill(teeth, mix((214, 204, 190), skin, 0.15))
    canvas.fill(ribbon(upper_seam, 0.014), dim(lip, 0.45))
    shine = shifted(lower_seam[7:-7], 0.0, 0.45 * identity.lower_lip)
    canvas.draw_strands(shine, mix(lip, (255, 235, 230), 0.2))
    hollow = shifted(lower_edge[5:-5], 0.0, 0.012)
    canvas.shade(np.concatenate([hollow, shifted(hollow, 0.0, 0.045)[::-1]]), 0.2)
    dimple = np.array([(half_width, corner_y - 0.012), (1.06 * half_width, corner_y + 0.02)])
    canvas.draw_creases(shifted(mirrored(dimple), middle_x, 0.0), 0.3)
