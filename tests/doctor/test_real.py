"""The same on real faces."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_zoo import Planted, changed, examine_images, serious, shifted, some

from margrave.data import ImageFolder
from margrave.doctor import examine_model
from margrave.doctor.data import sample_identities
from margrave.faces import MTCNN, YuNet, align_face
from margrave.models import ImportOptions

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir() and not os.environ.get("MARGRAVE_REQUIRE_SHARED"),
    reason="needs the real faces in ../shared",
)


def some_of(name: str) -> Planted:
    folder = ImageFolder(DATA / name)
    chosen = sample_identities(folder.labels, 400)
    _, labels = np.unique(folder.labels[chosen], return_inverse=True)
    return Planted([folder.read(index) for index in chosen], labels)


@pytest.fixture(scope="session")
def mtcnn() -> MTCNN:
    try:
        return MTCNN(minimum_face=40)
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("bollywood", "unaligned_faces"),
        ("orl", "unaligned_faces"),
        ("gatech30", "unaligned_faces"),
        ("photos", "unaligned_faces"),
        ("lfw_a", "loosely_aligned_faces"),
    ],
)
def test_unaligned(name: str, fault: str, mtcnn: MTCNN) -> None:
    assert examine_images(some_of(name), detector=mtcnn)[0].fault == fault


@pytest.mark.parametrize("name", ["bollywood", "lfw_a", "orl", "gatech30", "photos"])
def test_without_a_detector(name: str) -> None:
    findings = {finding.fault: finding for finding in examine_images(some_of(name))}
    if name in ("orl", "gatech30", "photos"):
        assert "not square" in findings["unaligned_faces"].message or "92 x 112" in (
            findings["unaligned_faces"].message
        )
    else:
        assert "no landmark detector" in findings["alignment_not_checked"].message


@pytest.mark.parametrize("name", ["bollywood", "orl", "photos"])
def test_own_crops_are_aligned(name: str, mtcnn: MTCNN) -> None:
    """Crops by one detector, measured by the other."""
    yunet = DATA.parent / "models" / "yunet_s_dynamic.onnx"
    if not yunet.is_file():
        pytest.skip("needs YuNet's file")
    faces, detector = some_of(name), YuNet(yunet)
    crops = []
    for image in faces.images[:: max(1, len(faces.images) // 24)]:
        shrink = min(1.0, 640 / max(image.shape))
        enlarge = 2 if max(image.shape) < 200 else 1
        photo = cv2.resize(image, None, fx=shrink * enlarge, fy=shrink * enlarge)
        faces = detector.detect(photo)
        if faces:
            crops.append(align_face(photo, max(faces, key=lambda face: face.area).landmarks))
    labels = np.arange(len(crops)) // 2
    findings = examine_images(Planted(crops, labels), detector=mtcnn)
    assert serious(findings) == []
    aligned = next(each for each in findings if each.fault == "aligned_faces")
    assert aligned.figures["median_displacement"] < 3


def test_pretrained_model_is_not_accused() -> None:
    model = DATA.parent / "models" / "mobilefacenet.onnx"
    options = ImportOptions(
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), color_order="rgb"
    )
    for given in (options, ImportOptions()):
        findings = examine_model(model, options=given)
        assert {finding.severity for finding in findings} <= {"note", "unchecked"}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("bollywood", "reversed_colors"),
        ("bollywood", "unaligned_faces"),
        ("bollywood", "turned_images"),
        ("lfw_a", "unaligned_faces"),
        ("lfw_a", "blank_images"),
        ("lfw_a", "duplicate_identities"),
        ("orl", "unaligned_faces"),
    ],
)
def test_planted(name: str, fault: str) -> None:
    faces = some_of(name)
    one = np.flatnonzero(faces.labels == 0)
    planted = {
        "reversed_colors": lambda: changed(faces, lambda image, draw: image[..., ::-1].copy()),
        "unaligned_faces": lambda: changed(faces, shifted),
        "turned_images": lambda: changed(faces, lambda image, draw: image[::-1, ::-1].copy()),
        "blank_images": lambda: changed(faces, some(0.05, lambda x: np.full_like(x, 120))),
        "duplicate_identities": lambda: Planted(
            faces.images + [faces.images[n] for n in one],
            np.append(faces.labels, [faces.labels.max() + 1] * len(one)),
        ),
    }
    findings = examine_images(planted[fault]())
    assert findings[0].fault == fault, findings[:3]
