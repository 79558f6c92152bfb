"""Checks whether faces are aligned to ArcFace's template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from margrave.data import ReadableImages, fit_image
from margrave.doctor.findings import Finding
from margrave.doctor.image_checks import BLANK_STD
from margrave.doctor.measurements import SIDE, Measurements
from margrave.faces import (
    MTCNN,
    Detector,
    YuNet,
    alignment_errors,
    detect_face_in_crop,
    template_transforms,
)
from margrave.progress import Progress
from margrave.synthetic import SyntheticFaces

SAMPLE_SIZE, STEP = 384, 48
"""Number of images in which faces are detected, and number of images after which to check each time
whether to stop early."""
MIN_FACES = 8
"""Minimum number of detected faces for a verdict."""
MIN_FACE_SIZE = 40
"""Minimum size of faces that MTCNN detects, in pixels."""
MAX_DISPLACEMENT = 4.0
"""Distance from the template, in pixels of a 112 × 112 crop, beyond which a face counts as
displaced. If MTCNN aligns the faces and YuNet measures them, or vice versa, 4 to 5 % of the faces
exceed it (median displacement 1.8 to 2.5 pixels)."""
LOOSE_SHARE, UNALIGNED_SHARE, EARLY_END_SHARE = 0.09, 0.5, 0.8
"""Shares of displaced faces: above them, faces count as loosely aligned or unaligned, or the search
stops early. If 5 % of all faces are displaced, a sample of 384 shows 9 % or more with a probability
of 0.001."""
MIN_EYE_CONTRAST = 0.4
"""Below this eye contrast (see ``Measurements.eyes``), faces are not aligned. Aligned faces have
0.5 to 3, loose crops up to 1."""
MIN_CONTRASTS = 40
"""Minimum number of images for a verdict by eye contrast."""
INSTALL = (
    "pip install 'margrave[align]' for MTCNN, or give a YuNet file: --detector "
    "face_detection_yunet_2023mar.onnx"
)
ALIGN = "align the photos: margrave align PHOTOS CROPS"


def available_detector(model: str | Path | None = None) -> Detector | None:
    """YuNet from a file if one is given, else MTCNN if its weights are installed, else None.

    Raises:
        ValueError: the file is not a YuNet model.
    """
    if model is not None:
        return YuNet(model)
    try:
        return MTCNN(minimum_face=MIN_FACE_SIZE)
    except (ValueError, ImportError):
        return None


def locate_faces(
    images: ReadableImages,
    indices: np.ndarray,
    detector: Detector,
    progress: Progress = lambda done, total: None,
) -> tuple[np.ndarray, int]:
    """Detect the largest face of each image.

    The search stops early if nearly all faces are displaced, or if few faces are detected.

    Args:
        images: the images.
        indices: indices of the images to search.
        detector: detects the landmarks.
        progress: called with (images searched, total images).

    Returns:
        (F, 5, 2) landmarks, in pixels of the image fitted to 112 × 112; and the number of images
        searched.
    """
    landmarks: list[np.ndarray] = []
    searched = 0
    # In random order, so that a search that stops early still samples all parts of the set.
    for index in np.random.default_rng(0).permutation(indices).tolist():
        face = detect_face_in_crop(fit_image(images.read(index), SIDE), detector)
        if face is not None:
            landmarks.append(face.landmarks)
        searched += 1
        progress(searched, len(indices))
        if searched % STEP == 0 and len(indices) > searched:
            displaced_share = 1.0
            if landmarks:
                displaced_share = np.mean(alignment_errors(np.array(landmarks)) > MAX_DISPLACEMENT)
            if displaced_share > EARLY_END_SHARE or len(landmarks) < searched / 4:
                progress(searched, searched)
                break
    return np.array(landmarks).reshape(-1, 5, 2), searched


def check_alignment(
    measured: Measurements,
    images: ReadableImages,
    detector: Detector | None = None,
    progress: Progress = lambda done, total: None,
) -> Iterator[Finding]:
    """Check whether faces are aligned to ArcFace's template, or report why this cannot be checked.

    Args:
        measured: measurements of all images.
        images: the images.
        detector: detects landmarks in a sample of the images; without one, only rough
            indicators are checked.
        progress: called with (images searched, total images).
    """
    usable = measured.indices[measured.std >= BLANK_STD]
    if not len(usable):
        yield _unchecked_finding(
            "all images are blank or unreadable", "give images that are readable and not blank"
        )
        return
    eyes = measured.eyes[measured.std >= BLANK_STD]
    contrasts = np.median(eyes, axis=0)
    # The standard error of a median is about 1.25 times that of a mean.
    contrast_error = 1.25 * eyes[:, 0].std() / len(eyes) ** 0.5
    figures = {
        "eye_contrast": round(float(contrasts[0]), 3),
        "turned_by_90_180_270": [round(float(value), 3) for value in contrasts[1:]],
    }
    quarter_turns = int(contrasts.argmax())
    has_enough_images = len(eyes) >= MIN_CONTRASTS
    if (
        has_enough_images
        and quarter_turns
        and contrasts[quarter_turns] > max(MIN_EYE_CONTRAST, 2 * contrasts[0])
    ):
        yield _rotated_finding(contrasts, quarter_turns, figures)
        return
    reason, remedy = "no landmark detector is given or installed", INSTALL
    is_synthetic = isinstance(images, SyntheticFaces)
    if is_synthetic:
        reason, remedy = "the faces are synthetic and use a different template", "none needed"
    elif detector is not None:
        sample_size = min(SAMPLE_SIZE, len(usable))
        sample = np.unique(np.linspace(0, len(usable) - 1, sample_size).astype(int))
        landmarks, searched = locate_faces(images, usable[sample], detector, progress)
        if len(landmarks) >= max(MIN_FACES, searched / 2):
            yield _landmark_finding(landmarks, searched, figures)
            return
        reason = f"the detector finds a face in only {len(landmarks)} of {searched} images"
        remedy = "look at the images; align the original photos (margrave align)"
    non_square = _non_square_message(measured)
    if non_square or (has_enough_images and contrasts[0] + contrast_error < MIN_EYE_CONTRAST):
        message = non_square or (
            "eyes are not at the positions of ArcFace's five-point template: the images are hardly "
            "darker there than around these positions (contrast "
            f"{contrasts[0]:.2f}; aligned faces have 0.5 to 3)"
        )
        yield Finding(
            fault="unaligned_faces",
            severity="serious",
            message=message,
            remedy=ALIGN,
            figures=figures,
        )
        return
    unchecked = _unchecked_finding(reason, remedy, figures)
    yield replace(unchecked, severity="note") if is_synthetic else unchecked


def _unchecked_finding(reason: str, remedy: str, figures: dict | None = None) -> Finding:
    return Finding(
        fault="alignment_not_checked",
        severity="unchecked",
        message=f"alignment to ArcFace's template was not checked, because {reason}",
        remedy=remedy,
        share=0.0,
        figures=figures or {},
    )


def _rotated_finding(contrasts: np.ndarray, quarter_turns: int, figures: dict) -> Finding:
    return Finding(
        fault="turned_images",
        severity="serious",
        message=f"images are rotated: eyes are at their usual positions after a rotation by "
        f"{90 * quarter_turns} degrees counterclockwise (contrast {contrasts[quarter_turns]:.2f} "
        f"instead of {contrasts[0]:.2f})",
        remedy="rotate them, or align the original photos again: margrave align respects the EXIF "
        "orientation, which some tools ignore",
        figures=figures,
    )


def _non_square_message(measured: Measurements) -> str:
    """A message if most images are not square, unlike ArcFace's crops; otherwise an empty text."""
    sizes, counts = np.unique(measured.sizes, axis=0, return_counts=True)
    square_share = (measured.sizes[:, 0] == measured.sizes[:, 1]).mean()
    if square_share > 0.5:
        return ""
    height, width = sizes[counts.argmax()]
    shapes = (
        f"all images are {width} x {height}"
        if len(sizes) == 1
        else f"{100 * (1 - square_share):.0f} % of the images are not square ({len(sizes)} shapes)"
    )
    return f"{shapes}, but crops aligned to ArcFace's template are square"


def _landmark_finding(landmarks: np.ndarray, searched: int, figures: dict) -> Finding:
    """The finding that follows from the detected landmarks."""
    offsets = alignment_errors(landmarks)
    displaced = float((offsets > MAX_DISPLACEMENT).mean())
    median_placement = np.median(template_transforms(landmarks), axis=0)
    consistent = float((alignment_errors(landmarks, median_placement) <= MAX_DISPLACEMENT).mean())
    left, right = np.median(landmarks[:, :2], axis=0).round().astype(int).tolist()
    figures = figures | {
        "faces": len(landmarks),
        "images_searched": searched,
        "displaced": round(displaced, 4),
        "median_displacement": round(float(np.median(offsets)), 2),
        "placed_alike": round(consistent, 4),
        "eyes": [left, right],
    }
    eye_positions = (
        f"eyes are at about ({left[0]}, {left[1]}) and ({right[0]}, {right[1]}) of 112 x 112, "
        "in the template at (38, 52) and (74, 52)"
    )
    displacement = (
        f"{100 * displaced:.0f} % of {len(landmarks)} faces are more than "
        f"{MAX_DISPLACEMENT:.0f} pixels away from ArcFace's five-point template, in crops of "
        f"112 x 112 (median {np.median(offsets):.1f} pixels)"
    )
    if displaced > UNALIGNED_SHARE and consistent > UNALIGNED_SHARE:
        return Finding(
            fault="other_template",
            severity="warning",
            message="faces are aligned consistently, but to a template other than ArcFace's: "
            f"{eye_positions}; {displacement}",
            remedy="nearly all pretrained models were trained on ArcFace's crops and need faces "
            f"aligned to its template ({ALIGN}); for training from scratch, any consistent "
            "alignment is fine",
            figures=figures,
        )
    if displaced > UNALIGNED_SHARE:
        return Finding(
            fault="unaligned_faces",
            severity="serious",
            message=f"{displacement}; {eye_positions}",
            remedy=ALIGN,
            share=displaced,
            figures=figures,
        )
    if displaced > LOOSE_SHARE:
        return Finding(
            fault="loosely_aligned_faces",
            severity="warning",
            message=f"{displacement}; about 5 % is usual for faces aligned to the template",
            remedy="they were aligned by another method, or with errors; for slightly better "
            "results, "
            f"{ALIGN}",
            share=displaced,
            figures=figures,
        )
    return Finding(
        fault="aligned_faces",
        severity="note",
        message=f"faces are aligned to ArcFace's template: {len(landmarks)} faces with a median "
        f"distance of {np.median(offsets):.1f} pixels from it, in crops of 112 x 112",
        remedy="none needed",
        share=0.0,
        figures=figures,
    )
