"""Cuts the intended faces out of an image, as the aligned crops that a model expects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from margrave.data import Fit
from margrave.faces import AlignedFace, Detector, FaceFinder, TemplateFinder, build_detector
from margrave.matching.choosing import (
    FaceChoice,
    check_aligned,
    choose_faces,
    crop_as_face,
    read_image,
)
from margrave.models import ModelCard


@dataclass(frozen=True, eq=False)
class Cropper:
    """Cuts faces out of images; needs a detector, but not the model's network.

    Attributes:
        finder: detects faces and cuts them out; None treats every image as an aligned crop.
        checker: if `finder` is None, the detector that checks whether images are aligned crops;
            None skips the check.
        size: S, the side length of the crops in pixels.
        fit: how an aligned crop that is not square is made square.
    """

    finder: FaceFinder | None
    checker: Detector | None
    size: int
    fit: Fit

    def find(self, image: Any, *, which: FaceChoice = "auto", name: str = "") -> list[AlignedFace]:
        """Find the intended faces of an image. See ``Matcher.find``."""
        pixels, name = read_image(image, name)
        if self.finder is not None:
            return choose_faces(self.finder.find(pixels, self.size), which, name)
        if self.checker is not None:
            check_aligned(pixels, self.checker, name)
        return [crop_as_face(pixels, self.size, self.fit)]


def cropper_for(
    card: ModelCard,
    detector: str | Path | Detector | None = None,
    *,
    aligned: bool = False,
    check_alignment: bool = True,
) -> Cropper:
    """Create the cropper for a model.

    Args:
        card: the model's card.
        detector: ``mtcnn`` (the default), the path of a YuNet file, or a detector object; ignored
            if the model uses dlib's alignment, which includes a detector.
        aligned: True treats images as aligned crops, in which no faces are detected.
        check_alignment: if `aligned` is True and the model uses ArcFace's alignment, refuse crops
            that do not show an upright face aligned to ArcFace's template.

    Raises:
        ValueError: the detector is not installed, or its file cannot be read.
    """
    uses_dlib = card.alignment == "dlib"
    if uses_dlib and not aligned:
        from margrave.faces.dlib_faces import DlibFinder

        return Cropper(DlibFinder(), None, card.image_size, card.fit)
    if aligned and (uses_dlib or not check_alignment):
        return Cropper(None, None, card.image_size, card.fit)
    if detector is None or isinstance(detector, str | Path):
        detector = build_detector(detector)
    if aligned:
        return Cropper(None, detector, card.image_size, card.fit)
    return Cropper(TemplateFinder(detector), None, card.image_size, card.fit)
