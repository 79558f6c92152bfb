"""Where faces lie in their images, compared with ArcFace's template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from margrave.data import ReadableImages, fit_image
from margrave.doctor.findings import Finding
from margrave.doctor.measurements import SIDE, Measurements, Progress
from margrave.faces import MTCNN, TEMPLATE, Detector, YuNet, similarity
from margrave.synthetic import SyntheticFaces

SAMPLE, PART = 384, 48
"""Images that faces are searched in, and after how many it is seen whether that is enough."""
FEWEST_FACES = 8
MARGIN, ENLARGED = 28, 2
"""Detectors miss faces that fill the image or are small."""
SMALLEST_FACE = 40
DISPLACED = 4.0
"""Pixels of 112. Of faces aligned by one detector and measured by another, 4 to 5 % lie further off
(MTCNN and YuNet; medians 1.8 to 2.5)."""
MANY, MOST, CLEARLY = 0.09, 0.5, 0.8
"""Shares of displaced faces: where 5 % are, a sample of 384 shows 9 % once in a thousand times."""
CONTRAST = 0.4
"""Of the eyes: faces below it are not aligned; aligned ones have 0.5 to 3, loose crops up to 1."""
FEWEST_CONTRASTS = 40
BLANK_STD = 4.0
INSTALL = (
    "pip install 'margrave[align]' for MTCNN, or give YuNet's file: --detector "
    "face_detection_yunet_2023mar.onnx"
)
ALIGN = "align the photos: margrave align PHOTOS CROPS"


def available_detector(model: str | Path | None = None) -> Detector | None:
    """YuNet from its file, else MTCNN where its weights are installed.

    Raises:
        ValueError: a file that is no YuNet.
    """
    if model is not None:
        return YuNet(model)
    try:
        return MTCNN(minimum_face=SMALLEST_FACE)
    except (ValueError, ImportError):
        return None


def locate_faces(
    images: ReadableImages,
    indices: np.ndarray,
    detector: Detector,
    progress: Progress = lambda done, total: None,
) -> tuple[np.ndarray, int]:
    """(F, 5, 2) landmarks of the largest face of each image, and how many images were searched.

    Landmarks are pixels of the image as embedders get it, fitted to 112 × 112. The search ends
    early where nearly all faces are displaced, or hardly any face is found.
    """
    landmarks: list[np.ndarray] = []
    searched = 0
    for index in indices.tolist():
        face = _largest_face(fit_image(images.read(index), SIDE), detector)
        if face is not None:
            landmarks.append(face)
        searched += 1
        progress(searched, len(indices))
        if searched % PART == 0 and len(indices) > searched:
            displaced = np.mean(displacements(np.array(landmarks)) > DISPLACED) if landmarks else 1
            if displaced > CLEARLY or len(landmarks) < searched / 4:
                break
    return np.array(landmarks).reshape(-1, 5, 2), searched


def _largest_face(image: np.ndarray, detector: Detector) -> np.ndarray | None:
    framed = cv2.copyMakeBorder(image, MARGIN, MARGIN, MARGIN, MARGIN, cv2.BORDER_REPLICATE)
    framed = cv2.resize(framed, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_LINEAR)
    faces = detector.detect(framed)
    if not faces:
        return None
    landmarks = max(faces, key=lambda face: face.area).landmarks / ENLARGED - MARGIN
    spread = np.ptp(landmarks, axis=0)
    return landmarks if np.isfinite(landmarks).all() and spread.max() > 1 else None


def placements(landmarks: np.ndarray) -> np.ndarray:
    """(F, 2, 3) the rotation, scale and shift that bring the template onto each face."""
    return np.array([similarity(TEMPLATE, face) for face in landmarks]).reshape(-1, 2, 3)


def displacements(landmarks: np.ndarray, placement: np.ndarray | None = None) -> np.ndarray:
    """(F,) mean distance in pixels between each face's placement and the template, or another.

    Compared are placements, not landmarks: expressions and poses move landmarks in aligned faces.

    >>> displacements(TEMPLATE[None] + 3.0).round(3).tolist()
    [4.243]
    """
    shapes = _placed(placements(landmarks))
    expected = TEMPLATE if placement is None else _placed(placement[None])[0]
    return np.linalg.norm(shapes - expected, axis=2).mean(axis=1)


def _placed(matrices: np.ndarray) -> np.ndarray:
    """(F, 5, 2) the template's points, moved."""
    return TEMPLATE @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]


def check_alignment(
    measured: Measurements,
    images: ReadableImages,
    detector: Detector | None = None,
    progress: Progress = lambda done, total: None,
) -> Iterator[Finding]:
    """Faces on ArcFace's template, or elsewhere, or that it is not known.

    Args:
        measured: all images.
        images: they themselves.
        detector: finds landmarks in a sample of them; without one only coarse signs are left.
        progress: called with (images searched, images in all).
    """
    usable = measured.indices[measured.deviation >= BLANK_STD]
    if not len(usable):
        yield _unchecked("no image shows anything", "give images that can be read")
        return
    eyes = measured.eyes[measured.deviation >= BLANK_STD]
    contrasts = np.median(eyes, axis=0)
    error = 1.25 * eyes[:, 0].std() / len(eyes) ** 0.5
    figures = {
        "eye_contrast": round(float(contrasts[0]), 3),
        "turned_by_90_180_270": [round(float(value), 3) for value in contrasts[1:]],
    }
    turned = int(contrasts.argmax())
    enough = len(eyes) >= FEWEST_CONTRASTS
    if enough and turned and contrasts[turned] > max(CONTRAST, 2 * contrasts[0]):
        yield _turned(contrasts, turned, figures)
        return
    reason, remedy = "no landmark detector is given or installed", INSTALL
    drawn = isinstance(images, SyntheticFaces)
    if drawn:
        reason, remedy = "they are drawn, all alike and by a template of their own", "none needed"
    elif detector is not None:
        chosen = np.unique(np.linspace(0, len(usable) - 1, min(SAMPLE, len(usable))).astype(int))
        landmarks, searched = locate_faces(images, usable[chosen], detector, progress)
        if len(landmarks) >= max(FEWEST_FACES, searched / 2):
            yield _compared(landmarks, searched, figures)
            return
        reason = f"the detector finds a face in only {len(landmarks)} of {searched} images"
        remedy = "look at the images; align the photos that they come from (margrave align)"
    shapes = _off_shape(measured)
    if shapes or (enough and contrasts[0] + error < CONTRAST):
        signs = shapes or (
            "eyes are not where ArcFace's five-point template has them: it is hardly darker there "
            f"than beside (contrast {contrasts[0]:.2f}; aligned faces have 0.5 to 3)"
        )
        yield Finding(
            fault="unaligned_faces",
            severity="serious",
            said=signs,
            remedy=ALIGN,
            figures=figures,
        )
        return
    unchecked = _unchecked(reason, remedy, figures)
    yield replace(unchecked, severity="note") if drawn else unchecked


def _unchecked(reason: str, remedy: str, figures: dict | None = None) -> Finding:
    return Finding(
        fault="alignment_not_checked",
        severity="unchecked",
        said=f"whether faces lie on ArcFace's template is not checked, because {reason}",
        remedy=remedy,
        share=0.0,
        figures=figures or {},
    )


def _turned(contrasts: np.ndarray, turned: int, figures: dict) -> Finding:
    return Finding(
        fault="turned_images",
        severity="serious",
        said=f"eyes appear where they belong when the images are turned by {90 * turned} "
        f"degrees (contrast {contrasts[turned]:.2f}, as they are {contrasts[0]:.2f})",
        remedy="turn them, or align again from the photos: margrave align heeds the EXIF "
        "orientation that other tools drop",
        figures=figures,
    )


def _off_shape(measured: Measurements) -> str:
    """That most images are not square, as ArcFace's crops are."""
    sizes, counts = np.unique(measured.sizes, axis=0, return_counts=True)
    square = (measured.sizes[:, 0] == measured.sizes[:, 1]).mean()
    if square > 0.5:
        return ""
    height, width = sizes[counts.argmax()]
    shapes = (
        f"all images are {width} x {height}"
        if len(sizes) == 1
        else f"{100 * (1 - square):.0f} % of the images are not square ({len(sizes)} shapes)"
    )
    return f"{shapes}: crops by ArcFace's template are square"


def _compared(landmarks: np.ndarray, searched: int, figures: dict) -> Finding:
    """The verdict on the faces found."""
    offsets = displacements(landmarks)
    displaced = float((offsets > DISPLACED).mean())
    typical = np.median(placements(landmarks), axis=0)
    alike = float((displacements(landmarks, typical) <= DISPLACED).mean())
    left, right = np.median(landmarks[:, :2], axis=0).round().astype(int).tolist()
    figures = figures | {
        "faces": len(landmarks),
        "images_searched": searched,
        "displaced": round(displaced, 4),
        "median_displacement": round(float(np.median(offsets)), 2),
        "placed_alike": round(alike, 4),
        "eyes": [left, right],
    }
    where = (
        f"eyes are at about ({left[0]}, {left[1]}) and ({right[0]}, {right[1]}) of 112 x 112, "
        "the template has them at (38, 52) and (74, 52)"
    )
    measure = (
        f"{100 * displaced:.0f} % of {len(landmarks)} faces lie more than {DISPLACED:.0f} of 112 "
        f"pixels off ArcFace's five-point template (median {np.median(offsets):.1f})"
    )
    if displaced > MOST and alike > MOST:
        return Finding(
            fault="other_template",
            severity="warning",
            said=f"faces are placed alike, but not by ArcFace's template: {where}; {measure}",
            remedy="models trained on ArcFace's crops, as nearly all pretrained ones are, need "
            f"these aligned anew ({ALIGN}); to train from scratch it is enough that all are alike",
            figures=figures,
        )
    if displaced > MOST:
        return Finding(
            fault="unaligned_faces",
            severity="serious",
            said=f"{measure}; {where}",
            remedy=ALIGN,
            share=displaced,
            figures=figures,
        )
    if displaced > MANY:
        return Finding(
            fault="loosely_aligned_faces",
            severity="warning",
            said=f"{measure}; of crops by the template 5 % measure so",
            remedy=f"they were aligned by something else, or with an error; {ALIGN} gains a little",
            share=displaced,
            figures=figures,
        )
    return Finding(
        fault="aligned_faces",
        severity="note",
        said=f"faces lie on ArcFace's template: {len(landmarks)} of them, the median "
        f"{np.median(offsets):.1f} of 112 pixels off",
        remedy="none needed",
        share=0.0,
        figures=figures,
    )
