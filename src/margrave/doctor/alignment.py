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
"""Maximum number of images in which faces are detected. After every STEP images, the search checks
whether it can stop early."""
MIN_FACES = 8
"""Minimum number of detected faces for a verdict."""
MIN_FACE_SIZE = 40
"""Side length of the smallest faces that MTCNN detects, in pixels of the enlarged crop (see
`detect_face_in_crop`)."""
MAX_DISPLACEMENT = 4.0
"""Distance from the template, in pixels of a 112 × 112 crop, beyond which a face counts as
displaced. If MTCNN aligns the faces and YuNet measures them, or vice versa, 4 to 5 % of the faces
are displaced (median distance 1.8 to 2.5 pixels)."""
LOOSE_SHARE, UNALIGNED_SHARE, EARLY_END_SHARE = 0.09, 0.5, 0.8
"""Limits of the share of displaced faces. Above the first, faces count as loosely aligned; above
the second, as unaligned; above the third, the search stops early. If 5 % of all faces are
displaced, the probability that 9 % or more of a random sample of 384 are displaced is 0.001."""
MIN_EYE_CONTRAST = 0.4
"""Below this eye contrast (see ``Measurements.eye_contrasts``), faces are not aligned. Aligned
faces have 0.5 to 3, loose crops up to 1."""
MIN_CONTRASTS = 40
"""Minimum number of images for a verdict by eye contrast."""
INSTALL = (
    "pip install 'margrave[align]' for MTCNN, or give a YuNet file: --detector "
    "face_detection_yunet_2023mar.onnx"
)
ALIGN = "align the photos: margrave align PHOTOS CROPS"


def available_detector(model: str | Path | None = None) -> Detector | None:
    """Return YuNet if its file is given, otherwise MTCNN if it is installed, otherwise None.

    Args:
        model: a YuNet file, or None.

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

    The search stops early if nearly all detected faces are displaced, or if a face is detected in
    less than a quarter of the images.

    Args:
        images: the images.
        indices: indices of the images to search.
        detector: detects faces and their landmarks.
        progress: called with (images searched, total images).

    Returns:
        (F, 5, 2) landmarks of the F detected faces, in pixels of the image fitted to 112 × 112; and
        the number of images searched.
    """
    landmarks: list[np.ndarray] = []
    searched = 0
    # Search in random order. Then a search that stops early still samples all parts of the set.
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
                # Report the search as complete.
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
        measured: measurements of the images to examine.
        images: the set that contains them.
        detector: detects landmarks in a sample of the images; without one, only the image shapes
            and the eye contrasts are checked.
        progress: called with (images searched, total images).
    """
    usable = measured.indices[measured.std >= BLANK_STD]
    if not len(usable):
        yield _unchecked_finding(
            "all images are blank or unreadable", "give images that are readable and not blank"
        )
        return
    eye_contrasts = measured.eye_contrasts[measured.std >= BLANK_STD]
    median_contrasts = np.median(eye_contrasts, axis=0)
    # The standard error of a median is about 1.25 times that of a mean.
    contrast_error = 1.25 * eye_contrasts[:, 0].std() / len(eye_contrasts) ** 0.5
    figures = {
        "eye_contrast": round(float(median_contrasts[0]), 3),
        "turned_by_90_180_270": [round(float(contrast), 3) for contrast in median_contrasts[1:]],
    }
    quarter_turns = int(median_contrasts.argmax())
    has_enough_images = len(eye_contrasts) >= MIN_CONTRASTS
    if (
        has_enough_images
        and quarter_turns
        and median_contrasts[quarter_turns] > max(MIN_EYE_CONTRAST, 2 * median_contrasts[0])
    ):
        yield _rotated_finding(median_contrasts, quarter_turns, figures)
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
    if non_square or (
        has_enough_images and median_contrasts[0] + contrast_error < MIN_EYE_CONTRAST
    ):
        message = non_square or (
            "eyes are not at the positions of ArcFace's five-point template: the images are hardly "
            "darker there than around these positions (contrast "
            f"{median_contrasts[0]:.2f}; aligned faces have 0.5 to 3)"
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
    """The finding that alignment was not checked, with the reason and the remedy."""
    return Finding(
        fault="alignment_not_checked",
        severity="unchecked",
        message=f"alignment to ArcFace's template was not checked, because {reason}",
        remedy=remedy,
        share=0.0,
        figures=figures or {},
    )


def _rotated_finding(contrasts: np.ndarray, quarter_turns: int, figures: dict) -> Finding:
    """The finding that images are rotated.

    Args:
        contrasts: (4,) median eye contrasts, see ``Measurements.eye_contrasts``.
        quarter_turns: number of counterclockwise quarter turns that make the faces upright.
        figures: the measured values.
    """
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
    """Return a message unless most images are square, as ArcFace's crops are; otherwise ``""``."""
    sizes, counts = np.unique(measured.sizes, axis=0, return_counts=True)
    square_share = (measured.sizes[:, 0] == measured.sizes[:, 1]).mean()
    if square_share > 0.5:
        return ""
    height, width = sizes[counts.argmax()]
    shapes = (
        f"all images are {width} x {height}"
        if len(sizes) == 1
        else f"{100 * (1 - square_share):.0f} % of the images are not square "
        f"({len(sizes)} different image sizes)"
    )
    return f"{shapes}, but crops aligned to ArcFace's template are square"


def _landmark_finding(landmarks: np.ndarray, searched: int, figures: dict) -> Finding:
    """The finding on alignment that follows from the detected landmarks.

    Args:
        landmarks: (F, 5, 2) landmarks of the detected faces.
        searched: number of images searched.
        figures: the values measured so far.
    """
    distances = alignment_errors(landmarks)
    displaced_share = float((distances > MAX_DISPLACEMENT).mean())
    # A placement is the transform from the template to a face. If all faces are aligned to another
    # template, all placements are near their median.
    median_placement = np.median(template_transforms(landmarks), axis=0)
    distances_to_median = alignment_errors(landmarks, median_placement)
    consistent_share = float((distances_to_median <= MAX_DISPLACEMENT).mean())
    left_eye, right_eye = np.median(landmarks[:, :2], axis=0).round().astype(int).tolist()
    figures = figures | {
        "faces": len(landmarks),
        "images_searched": searched,
        "displaced": round(displaced_share, 4),
        "median_displacement": round(float(np.median(distances)), 2),
        "placed_alike": round(consistent_share, 4),
        "eyes": [left_eye, right_eye],
    }
    eye_positions = (
        f"eyes are at about ({left_eye[0]}, {left_eye[1]}) and ({right_eye[0]}, {right_eye[1]}) of "
        "112 x 112, in the template at (38, 52) and (74, 52)"
    )
    summary = (
        f"{100 * displaced_share:.0f} % of {len(landmarks)} faces are more than "
        f"{MAX_DISPLACEMENT:.0f} pixels away from ArcFace's five-point template, in crops of "
        f"112 x 112 (median {np.median(distances):.1f} pixels)"
    )
    if displaced_share > UNALIGNED_SHARE and consistent_share > UNALIGNED_SHARE:
        return Finding(
            fault="other_template",
            severity="warning",
            message="faces are aligned consistently, but to a template other than ArcFace's: "
            f"{eye_positions}; {summary}",
            remedy="nearly all pretrained models were trained on ArcFace's crops and need faces "
            f"aligned to its template ({ALIGN}); for training from scratch, any consistent "
            "alignment is fine",
            figures=figures,
        )
    if displaced_share > UNALIGNED_SHARE:
        return Finding(
            fault="unaligned_faces",
            severity="serious",
            message=f"{summary}; {eye_positions}",
            remedy=ALIGN,
            share=displaced_share,
            figures=figures,
        )
    if displaced_share > LOOSE_SHARE:
        return Finding(
            fault="loosely_aligned_faces",
            severity="warning",
            message=f"{summary}; about 5 % is usual for faces aligned to the template",
            remedy="they were aligned by another method, or with errors; for slightly better "
            f"results, {ALIGN}",
            share=displaced_share,
            figures=figures,
        )
    return Finding(
        fault="aligned_faces",
        severity="note",
        message=f"faces are aligned to ArcFace's template: {len(landmarks)} faces with a median "
        f"distance of {np.median(distances):.1f} pixels from it, in crops of 112 x 112",
        remedy="none needed",
        share=0.0,
        figures=figures,
    )
