"""The verdict on alignment, by a detector that knows where the faces are."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from test_zoo import Planted, serious

from margrave.doctor import examine_images
from margrave.doctor.alignment import SAMPLE_SIZE, available_detector
from margrave.faces import TEMPLATE, Detection, alignment_errors, template_transforms
from margrave.faces.placement import BORDER, ENLARGEMENT


class Known:
    """Gives landmarks of one image after the other."""

    def __init__(self, place: Callable[[np.random.Generator], np.ndarray | None]) -> None:
        self.place, self.calls = place, 0

    def detect(self, image: np.ndarray) -> list[Detection]:
        self.calls += 1
        points = self.place(np.random.default_rng(self.calls))
        if points is None:
            return []
        landmarks = (points + BORDER) * ENLARGEMENT
        return [Detection(np.array([0.0, 0, 112, 112]), landmarks, 0.9)]


def jitter(pixels: float, degrees: float = 0.0) -> Callable[[np.random.Generator], np.ndarray]:
    def place(draw: np.random.Generator) -> np.ndarray:
        turn = cv2.getRotationMatrix2D((56.0, 70.0), draw.normal(0, degrees), 1.0)
        noise = draw.normal(0, 1, (5, 2))
        return TEMPLATE @ turn[:, :2].T + turn[:, 2] + draw.normal(0, pixels, 2) + noise

    return place


@pytest.fixture(scope="module")
def images() -> Planted:
    """Noise: what is on them matters to no detector here."""
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 255, (112, 112, 3), np.uint8) for _ in range(500)]
    return Planted(pictures, np.arange(500) // 5)


def verdict(images: Planted, detector: Known) -> str:
    findings = examine_images(images, detector=detector)
    names = ("aligned", "faces", "template", "alignment")
    return next(each.fault for each in findings if any(name in each.fault for name in names))


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        (jitter(0.0), "aligned_faces"),
        (jitter(1.2, 1.5), "aligned_faces"),
        (jitter(2.2, 2.0), "loosely_aligned_faces"),
        (jitter(8.0), "unaligned_faces"),
        (jitter(0.0, 25.0), "unaligned_faces"),
        (lambda draw: 0.8 * jitter(0.5)(draw) + 11, "other_template"),
        (lambda draw: jitter(0.5)(draw) - (0, 9), "other_template"),
        (lambda draw: jitter(8.0)(draw) if draw.random() < 0.6 else None, "unaligned_faces"),
    ],
)
def test_places(place: Callable, fault: str, images: Planted) -> None:
    assert verdict(images, Known(place)) == fault


def test_no_faces_found(images: Planted) -> None:
    """Noise has no eyes either."""
    detector = Known(lambda draw: None)
    assert verdict(images, detector) == "unaligned_faces" and detector.calls < SAMPLE_SIZE / 2


def test_few_images_are_not_judged_by_contrast(images: Planted) -> None:
    few = Planted(images.images[:10], images.labels[:10])
    findings = examine_images(few)
    assert serious(findings) == []
    unchecked = next(each for each in findings if each.fault == "alignment_not_checked")
    assert unchecked.severity == "unchecked" and "no landmark detector" in unchecked.message
    assert "--detector" in unchecked.remedy


def test_shapes_speak_without_a_detector(images: Planted) -> None:
    oblong = Planted([image[:, :92] for image in images.images[:20]], images.labels[:20])
    finding = examine_images(oblong)[0]
    assert finding.fault == "unaligned_faces" and "92 x 112" in finding.message


def test_blank_images_are_not_searched() -> None:
    gray = Planted([np.full((112, 112, 3), 90, np.uint8)] * 10, np.arange(10) // 5)
    faults = [finding.fault for finding in examine_images(gray, detector=Known(jitter(0)))]
    assert "alignment_not_checked" in faults and faults[0] != "aligned_faces"


def test_displacement_is_of_placements() -> None:
    smile = TEMPLATE + np.array([[0, 0], [0, 0], [0, 0], [-3, -1], [3, -1]])
    assert alignment_errors(smile[None])[0] < 2
    assert np.allclose(template_transforms(TEMPLATE[None])[0], [[1, 0, 0], [0, 1, 0]])


def test_a_file_that_is_no_detector(tmp_path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        available_detector(tmp_path / "yunet.onnx")
