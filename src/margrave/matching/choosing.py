"""Chooses the intended faces of an image, and refuses images that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from margrave.data import decode_image, fit_image
from margrave.faces import (
    Detection,
    Detector,
    FoundFace,
    displacements,
    face_of_crop,
)
from margrave.files import read_bytes
from margrave.matching.contract import Refused

Which = Literal["auto", "largest", "all"]

MIN_FACE_WIDTH = 24
"""Minimum width of a face's box, in pixels."""
AMBIGUOUS_AREA_RATIO = 0.5
"""If a second face has at least this share of the largest face's area, the choice is ambiguous."""
MAX_DISPLACEMENT = 12.0
"""Maximum mean distance of an aligned crop's face from ArcFace's template, in pixels at 112 x 112.
Of LFW's aligned crops, 2 % exceed 10 pixels with either detector; unaligned photos have at
least 17."""
TEMPLATE_SIZE = 112
"""Side length of the crops for which ArcFace's template is defined, in pixels."""


def read_image(image: Any, name: str = "") -> tuple[np.ndarray, str]:
    """Read an image from a path, an image file's bytes or an array; return its pixels and name.

    Raises:
        Refused: it cannot be read, or is not an image.
    """
    if isinstance(image, str | Path):
        name = name or str(image)
        try:
            image = read_bytes(Path(image))
        except OSError as error:
            raise Refused(f"{name} cannot be read ({error.strerror})", "unreadable") from None
        # Raised for a path with a null byte or a lone surrogate.
        except ValueError as error:
            raise Refused(f"{name!r} is not a path ({error})", "unreadable") from None
    name = name or "the image"
    if isinstance(image, bytes | bytearray | memoryview):
        try:
            return decode_image(bytes(image), name), name
        except ValueError as error:
            raise Refused(str(error), "unreadable") from None
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise Refused(
            f"{name} has shape {pixels.shape} and dtype {pixels.dtype}; give a path, an image "
            "file's bytes, or (height, width, 3) RGB of dtype uint8",
            "unreadable",
        )
    return pixels, name


def choose(faces: Sequence[FoundFace], which: Which, name: str) -> list[FoundFace]:
    """Choose the intended faces of an image.

    Args:
        faces: all detected faces of the image, largest first.
        which: ``auto`` takes the largest face, but refuses the image if another one is nearly as
            large; ``largest`` always takes the largest; ``all`` takes every face that is large
            enough.
        name: the image's name in messages.

    Raises:
        Refused: there is no face, none is large enough, or the choice is ambiguous.
    """
    if which not in ("auto", "largest", "all"):
        raise ValueError(f"which = {which!r}; choices: auto, largest, all")
    if not faces:
        raise Refused(
            f"no face was detected in {name}; give a sharper or larger photo, or use --aligned "
            "(aligned=True) if it is an aligned crop",
            "no_face",
        )
    usable = [face for face in faces if face.detection.width >= MIN_FACE_WIDTH]
    if not usable:
        raise Refused(
            f"the largest face in {name} is {faces[0].detection.width:.0f} pixels wide, at least "
            f"{MIN_FACE_WIDTH} are required; give a larger photo",
            "no_face",
        )
    if which == "all":
        return usable
    min_area = AMBIGUOUS_AREA_RATIO * usable[0].detection.area
    similar = [face for face in usable if face.detection.area >= min_area]
    if which == "auto" and len(similar) > 1:
        raise Refused(
            f"{name} shows {len(similar)} faces of similar size; crop it to the intended person, "
            "or choose the largest face (enroll: --largest; else --face largest or --face all)",
            "several_faces",
        )
    return usable[:1]


def check_aligned(crop: np.ndarray, detector: Detector, name: str) -> None:
    """Check that a crop shows an upright face aligned to ArcFace's template.

    Args:
        crop: (height, width, 3) uint8 RGB.
        detector: the face detector, which finds the landmarks.
        name: the image's name in messages.

    Raises:
        Refused: no face was detected, or it is not aligned or not upright.
    """
    fitted = fit_image(crop, TEMPLATE_SIZE)
    face = face_of_crop(fitted, detector)
    remedy = "leave out --aligned (aligned=True), so that the face is detected and aligned"
    if face is None:
        raise Refused(
            f"no face was detected in {name}, which should be an aligned crop; {remedy}",
            "not_aligned",
        )
    displacement = float(displacements(face.landmarks[None])[0])
    if displacement > MAX_DISPLACEMENT:
        raise Refused(
            f"{name} is not an aligned crop: its face is {displacement:.0f} pixels (of "
            f"{TEMPLATE_SIZE}) away from ArcFace's template; {remedy}",
            "not_aligned",
        )
    # Detectors mistake some upside-down faces for upright ones, but with a lower score.
    turned = face_of_crop(np.ascontiguousarray(fitted[::-1, ::-1]), detector)
    if turned is not None and turned.score > face.score:
        raise Refused(f"{name} is upside down; {remedy}", "not_aligned")


def crop_as_face(crop: np.ndarray, size: int, fit: Any) -> FoundFace:
    """Use an aligned crop as a face without detecting anything.

    The detection's box is the whole crop, and its landmarks are zeros.
    """
    fitted = fit_image(crop, size, fit)
    box = np.array([0.0, 0.0, size, size])
    return FoundFace(fitted, Detection(box, np.zeros((5, 2)), 1.0))
