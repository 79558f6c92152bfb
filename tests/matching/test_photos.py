"""Raw photos of five people, with the shared embedder and detectors: every answer is right."""

from __future__ import annotations

import itertools
import os
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from margrave.gallery import create_gallery
from margrave.matching import Face, Matcher, Refused
from margrave.matching.choosing import check_aligned
from margrave.matching.gallery_card import new_gallery_card
from margrave.models import OperatingPoint, import_onnx

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS, YUNET = SHARED / "data" / "photos", SHARED / "models" / "yunet_s_dynamic.onnx"
if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert PHOTOS.is_dir() and find_spec("mtcnn"), "real photos and MTCNN are required here"
pytestmark = pytest.mark.skipif(
    not PHOTOS.is_dir() or find_spec("mtcnn") is None, reason="no real photos or no MTCNN here"
)
# Of mobilefacenet.onnx over all pairs of lfw_a, at FAR 1e-3.
POINT = OperatingPoint(far=1e-3, threshold=0.3673, measured_on="lfw_a")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from margrave.protocols import save_operating_points

    path = tmp_path_factory.mktemp("model") / "mobilefacenet.onnx"
    import_onnx(
        SHARED / "models" / "mobilefacenet.onnx",
        path,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        color_order="rgb",
    )
    save_operating_points(path, [POINT])
    return path


@pytest.fixture(scope="module", params=["mtcnn", "yunet"])
def made(request: pytest.FixtureRequest, model: Path) -> tuple[Matcher, dict[Path, Face]]:
    matcher = Matcher.load(model, detector=YUNET if request.param == "yunet" else None)
    photos = sorted(PHOTOS.glob("person_*/*"))
    assert len(photos) == 15
    return matcher, {photo: matcher.faces(photo)[0] for photo in photos}


def test_every_pair_is_decided_rightly(made: tuple[Matcher, dict[Path, Face]]) -> None:
    matcher, faces = made
    for one, other in itertools.combinations(faces, 2):
        answer = matcher.decide(faces[one], faces[other])
        assert answer.same == (one.parent == other.parent), (one, other, answer.similarity)


def test_one_photo_identifies_and_nothing_is_left_of_whom_is_forgotten(
    made: tuple[Matcher, dict[Path, Face]], tmp_path: Path
) -> None:
    matcher, faces = made
    by_person = {
        folder.name: [faces[photo] for photo in faces if photo.parent == folder]
        for folder in sorted({photo.parent for photo in faces})
    }
    stranger = by_person.pop("person_e")
    path = tmp_path / "people.gallery"
    gallery = create_gallery(str(path), new_gallery_card(matcher.model, keep_images=True))
    matcher = Matcher(matcher.model, gallery, finder=matcher.finder)
    for name, (first, *_) in by_person.items():
        matcher.enroll_faces(name, [first])
    for name, (_, *others) in by_person.items():
        assert [answer.person for answer in matcher.identify_faces(others)] == [name] * len(others)
    assert [answer.person for answer in matcher.identify_faces(stranger)] == [None, None]
    crop = gallery.crops("person_a")[0]
    vector = gallery.vector("person_a")
    stored = (vector / np.linalg.norm(vector)).astype(np.float32).tobytes()
    traces = [stored[:16], stored[-16:], b"person_a", crop[100:132], crop[-64:-32]]
    files = list(tmp_path.iterdir())
    content = b"".join(file.read_bytes() for file in files)
    assert all(trace in content for trace in traces)
    assert matcher.forget("person_a").erased
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(trace in content for trace in traces)
    gallery.close()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not any(trace in content for trace in traces)


def test_raw_photos_are_no_aligned_crops(made: tuple[Matcher, dict[Path, Face]]) -> None:
    matcher, faces = made
    detector = matcher.finder.detector  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    for photo, face in list(faces.items())[:6]:
        with pytest.raises(Refused, match="--aligned") as caught:
            image = cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB)
            check_aligned(image, detector, photo.name)
        assert caught.value.reason == "not_aligned"
        check_aligned(face.crop, detector, photo.name)
        for turned in (np.rot90(face.crop, 2), np.rot90(face.crop)):
            with pytest.raises(Refused):
                check_aligned(np.ascontiguousarray(turned), detector, photo.name)


def test_a_photo_of_two_people_is_refused_unless_one_is_meant(model: Path) -> None:
    matcher = Matcher.load(model)
    couple = PHOTOS / "groups" / "couple.jpg"
    with pytest.raises(Refused, match="2 faces of similar size"):
        matcher.find(couple)
    assert len(matcher.find(couple, which="all")) == 2
    assert len(matcher.find(couple, which="largest")) == 1


def test_photos_in_any_form_are_read_or_refused(model: Path, tmp_path: Path) -> None:
    matcher = Matcher.load(model)
    photo = PHOTOS / "person_a" / "img2.jpg"
    image = cv2.imread(str(photo))
    small = cv2.resize(image, None, fx=300 / max(image.shape), fy=300 / max(image.shape))
    tiny = cv2.resize(image, (24, 24))
    reference = matcher.faces(photo)[0]
    for content in (
        cv2.imencode(".webp", small)[1].tobytes(),
        cv2.imencode(".png", small)[1].tobytes(),
        _turned_by_exif(small),
    ):
        assert matcher.decide(matcher.faces(content)[0], reference).same
    with pytest.raises(Refused, match=r"no face|pixels wide"):
        matcher.faces(cv2.imencode(".png", tiny)[1].tobytes())
    with pytest.raises(Refused, match="supported format"):
        matcher.faces(b"GIF89a" + bytes(100))


def _turned_by_exif(image: np.ndarray) -> bytes:
    """A JPEG whose pixels lie on their side, and whose EXIF orientation says so."""
    turned = cv2.imencode(".jpg", cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE))[1].tobytes()
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    return turned[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + turned[2:]
