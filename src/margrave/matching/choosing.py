"""Chooses the intended faces of an image, and refuses images that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from margrave.data import Fit, decode_image, fit_image
from margrave.faces import (
    AlignedFace,
    Detection,
    Detector,
    alignment_errors,
    detect_face_in_crop,
)
from margrave.files import read_bytes
from margrave.matching.contract import Refused

FaceChoice = Literal["auto", "largest", "all"]

MIN_FACE_WIDTH = 24
"""Minimum width of a face's box, in pixels."""
AMBIGUOUS_AREA_RATIO = 0.5
"""An image is ambiguous if another face has at least this share of the largest face's area."""
MAX_DISPLACEMENT = 12.0
"""Maximum displacement of an aligned crop's face from ArcFace's template, in pixels at 112 x 112
(see `margrave.faces.alignment_errors`). With MTCNN and with YuNet, 2 % of LFW's aligned crops
exceed 10 pixels, while unaligned photos have at least 17."""
TEMPLATE_SIZE = 112
"""Side length of the crops for which ArcFace's template is defined, in pixels."""


def read_image(image: Any, name: str = "") -> tuple[np.ndarray, str]:
    """Read an image; return its pixels, (height, width, 3) uint8 RGB, and its name.

    Args:
        image: a path, an image file's bytes, or the pixels.
        name: the image's name in messages; by default its path, or "the image".

    Raises:
        Refused: the image cannot be read, or is not an image.
    """
    if isinstance(image, str | Path):
        name = name or str(image)
        try:
            image = read_bytes(Path(image))
        except OSError as error:
            raise Refused(
                f"{name} cannot be read ({error.strerror}); check the path", "unreadable"
            ) from None
        except ValueError as error:  # a null byte or an unpaired surrogate in the path
            raise Refused(
                f"{name!r} is not a valid path ({error}); give an image file's path", "unreadable"
            ) from None
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


def choose_faces(faces: Sequence[AlignedFace], which: FaceChoice, name: str) -> list[AlignedFace]:
    """Choose the intended faces of an image.

    Faces narrower than `MIN_FACE_WIDTH` are ignored.

    Args:
        faces: all detected faces of the image, largest first.
        which: ``auto`` takes the largest face, but refuses the image if another face is of similar
            size; ``largest`` always takes the largest; ``all`` takes every face that is large
            enough.
        name: the image's name in messages.

    Raises:
        Refused: there is no face, none is large enough, or the choice is ambiguous.
    """
    if which not in ("auto", "largest", "all"):
        raise ValueError(f"which = {which!r}; choices: auto, largest, all")
    if not faces:
        raise Refused(
            f"no face was detected in {name}; give a sharper or larger photo. If it is an aligned "
            "crop, use --aligned, or aligned=True in Python",
            "no_face",
        )
    usable = [face for face in faces if face.detection.width >= MIN_FACE_WIDTH]
    if not usable:
        raise Refused(
            f"the largest face in {name} is {faces[0].detection.width:.0f} pixels wide, but at "
            f"least {MIN_FACE_WIDTH} are required; give a larger photo",
            "no_face",
        )
    if which == "all":
        return usable
    min_area = AMBIGUOUS_AREA_RATIO * usable[0].detection.area
    similar_sized = [face for face in usable if face.detection.area >= min_area]
    if which == "auto" and len(similar_sized) > 1:
        raise Refused(
            f"{name} shows {len(similar_sized)} faces of similar size; crop it to the intended "
            "person, or take the largest face with --largest (margrave enroll) or --face largest "
            "(verify, identify; --face all takes every face); in Python, largest=True "
            "(enroll) or which='largest' (other methods); in the API, face=largest",
            "several_faces",
        )
    return usable[:1]


def check_aligned(crop: np.ndarray, detector: Detector, name: str) -> None:
    """Check that a crop shows an upright face aligned to ArcFace's template.

    Args:
        crop: (height, width, 3) uint8 RGB.
        detector: detects the face and its landmarks.
        name: the image's name in messages.

    Raises:
        Refused: no face was detected, or it is not aligned or not upright.
    """
    fitted = fit_image(crop, TEMPLATE_SIZE)
    face = detect_face_in_crop(fitted, detector)
    remedy = (
        "leave out --aligned, or aligned=True in Python, so that the face is detected and aligned"
    )
    if face is None:
        raise Refused(
            f"no face was detected in {name}, which should be an aligned crop; {remedy}",
            "not_aligned",
        )
    displacement = float(alignment_errors(face.landmarks[None])[0])
    if displacement > MAX_DISPLACEMENT:
        raise Refused(
            f"{name} is not an aligned crop: at {TEMPLATE_SIZE} x {TEMPLATE_SIZE} pixels, its face "
            f"is {displacement:.0f} pixels away from ArcFace's template; {remedy}",
            "not_aligned",
        )
    # Detectors mistake some upside-down faces for upright ones, but with a lower score. So detect
    # the face again in the crop turned by 180 degrees, and compare the scores.
    turned_face = detect_face_in_crop(np.ascontiguousarray(fitted[::-1, ::-1]), detector)
    if turned_face is not None and turned_face.score > face.score:
        raise Refused(f"{name} is upside down; turn it by 180 degrees", "not_aligned")


def crop_as_face(crop: np.ndarray, size: int, fit: Fit) -> AlignedFace:
    """Convert an aligned crop to an `AlignedFace` without running a detector.

    The detection is a placeholder: its box is the whole crop, and its landmarks are zeros.

    Args:
        crop: (height, width, 3) uint8 RGB.
        size: side length of the returned crop in pixels.
        fit: how a crop that is not square is made square, see ``margrave.data.fit_image``.
    """
    fitted = fit_image(crop, size, fit)
    box = np.array([0.0, 0.0, size, size])
    return AlignedFace(fitted, Detection(box, np.zeros((5, 2)), 1.0))
