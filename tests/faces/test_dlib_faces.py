"""dlib's finder on real photos, where there are any, and on faces that are none."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from margrave.evaluation import unit_rows
from margrave.inference import Embedder
from margrave.models import open_model

INSTALLED = all(find_spec(name) is not None for name in ("dlib", "face_recognition_models"))
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"
if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert INSTALLED, "the extra baseline is required here"
    assert PHOTOS.is_dir(), "the real photos are required here"
if not INSTALLED:
    pytest.skip("the extra baseline is not installed", allow_module_level=True)

from margrave.faces.dlib_faces import DlibFinder  # noqa: E402

real = pytest.mark.skipif(not PHOTOS.is_dir(), reason="no real photos here")


@pytest.fixture(scope="module")
def finder() -> DlibFinder:
    return DlibFinder()


def _photo(path: str) -> np.ndarray:
    return cv2.imread(str(PHOTOS / path))[:, :, ::-1]


def test_no_face_is_found_where_there_is_none(finder: DlibFinder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    for photo in (noise, noise[:1], noise[:, :2], np.zeros((3000, 5, 3), np.uint8)):
        assert finder.find(photo, 150) == []


@real
def test_landmarks_and_chip(finder: DlibFinder) -> None:
    photo = _photo("person_a/img2.jpg")
    (face,) = finder.find(photo, 150)
    assert face.crop.shape == (150, 150, 3) and face.crop.dtype == np.uint8
    outer, inner, other_inner, other_outer, nose = face.detection.landmarks
    assert outer[0] < inner[0] < nose[0] < other_inner[0] < other_outer[0] < photo.shape[1]
    assert nose[1] > max(outer[1], other_outer[1]) and 0.5 < face.detection.score < 1
    left, top, right, bottom = face.detection.box
    assert left < outer[0] < other_outer[0] < right and top < outer[1] < nose[1] < bottom
    # A copy that went to another process finds the same.
    (again,) = pickle.loads(pickle.dumps(finder)).find(photo, 150)
    np.testing.assert_array_equal(again.crop, face.crop)


@real
def test_a_huge_and_a_tiny_photo(finder: DlibFinder) -> None:
    photo = _photo("person_a/img2.jpg")
    (face,) = finder.find(photo, 150)
    huge = cv2.resize(photo, None, fx=3, fy=3, interpolation=cv2.INTER_LINEAR)
    (large,) = finder.find(huge, 150)
    assert np.abs(large.detection.box / 3 - face.detection.box).max() < face.detection.width / 10
    # Its own face, cut so that it fills the image.
    left, top, right, bottom = face.detection.box.astype(int)
    small = cv2.resize(photo[top:bottom, left:right], (64, 64), interpolation=cv2.INTER_AREA)
    (tight,) = finder.find(small, 150)
    assert tight.detection.width > 32


@real
def test_every_face_of_a_group_the_largest_first(finder: DlibFinder) -> None:
    areas = [face.detection.area for face in finder.find(_photo("groups/couple.jpg"), 150)]
    assert len(areas) == 2 and areas == sorted(areas, reverse=True)
    assert len(finder.find(_photo("groups/selfie-many-people.jpg"), 150)) >= 4


@real
def test_one_person_above_and_strangers_below_the_thresholds(finder: DlibFinder) -> None:
    paths = sorted(path for path in PHOTOS.glob("person_*/*.jpg"))
    people = np.array([path.parent.name for path in paths])
    chips = []
    for path in paths:
        found = finder.find(_photo(str(path.relative_to(PHOTOS))), 150)
        assert found, path
        chips.append(found[0].crop)
    model = open_model("baseline")
    plain, flipped = Embedder(model.backbone, model.card).embed_images(chips)
    units = unit_rows(plain + flipped)
    cosines = units @ units.T
    pairs = np.triu(np.ones_like(cosines, bool), 1)
    same = cosines[pairs & (people[:, None] == people)]
    other = cosines[pairs & (people[:, None] != people)]
    print(f"same person {np.sort(same)[:4].round(4)}, others {np.sort(other)[-4:].round(4)}")
    thresholds = {point.far: point.threshold for point in model.card.operating_points}
    assert same.min() > thresholds[1e-2] and other.max() < thresholds[1e-2]
    assert (same > thresholds[1e-3]).mean() > 0.9 and (same > thresholds[1e-4]).mean() > 0.85
