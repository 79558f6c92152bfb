"""Photos to crops: what is written, rejected, resumed; real photos keep their identities."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from margrave.data import ImageFiles
from margrave.faces import (
    TEMPLATE,
    AlignedPhoto,
    AlignmentSettings,
    Detection,
    align_photos,
)
from margrave.faces.aligned_photos import _crop_names

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS, MODELS = SHARED / "data" / "photos", SHARED / "models"
if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert PHOTOS.is_dir(), "the real photos are required here"


class Squares:
    """Takes each bright square of an image for a face."""

    def detect(self, image: np.ndarray) -> list[Detection]:
        mask = (image[..., 0] > 128).astype(np.uint8)
        _, _, components, _ = cv2.connectedComponentsWithStats(mask)
        return [
            Detection(
                np.array([x, y, x + w, y + h], float), TEMPLATE * (w / 112) + (x, y), 0.9
            )
            for x, y, w, h, _ in components[1:]
        ]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(AlignmentSettings, "build", lambda self: Squares())
    folder = tmp_path / "photos"
    (folder / "anna").mkdir(parents=True)
    one = np.zeros((200, 300, 3), np.uint8)
    one[20:80, 30:90] = 255
    two = one.copy()
    two[100:130, 200:230] = 200
    for name, image in (("anna/one.png", one), ("two.png", two), ("none.png", 0 * one)):
        cv2.imwrite(str(folder / name), image)
    cv2.imwrite(str(folder / "small.png"), cv2.resize(one, (60, 40)))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


def test_crops_lie_where_their_photos_do(photos: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    results = align_photos(
        photos, tmp_path / "crops", AlignmentSettings(), progress=lambda *step: steps.append(step)
    )
    by_photo = {one.photo: one for one in results}
    assert by_photo["anna/one.png"].crops == ("anna/one.jpg",)
    assert by_photo["two.png"].crops == ("two.jpg",)
    assert "no face found" in by_photo["none.png"].rejected
    assert "12 pixels wide; at least 24" in by_photo["small.png"].rejected
    assert "broken.jpg" in by_photo["broken.jpg"].rejected
    crop = ImageFiles(tmp_path / "crops", ["anna/one.jpg"]).read(0)
    assert crop.shape == (112, 112, 3) and crop.mean() > 250
    assert steps[0] == (0, 5) and steps[-1] == (5, 5)


def test_every_face_of_a_photo(photos: Path, tmp_path: Path) -> None:
    settings = AlignmentSettings(every_face=True, size=64)
    results = align_photos(photos, tmp_path / "crops", settings)
    both = next(one for one in results if one.photo == "two.png")
    assert both.crops == ("two-1.jpg", "two-2.jpg")
    assert both.boxes[0] == (30, 20, 90, 80) and both.boxes[1] == (200, 100, 230, 130)


def test_a_face_without_usable_landmarks_is_skipped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for landmarks in (np.zeros((5, 2)), np.full((5, 2), np.nan)):
        face = Detection(np.array([0.0, 0, 50, 50]), landmarks, 0.9)
        monkeypatch.setattr(Squares, "detect", lambda self, image, face=face: [face])
        results = align_photos(photos, tmp_path / str(landmarks[0, 0]), AlignmentSettings())
        rejected = {result.photo: result.rejected for result in results}
        assert "no face found" in rejected["two.png"]


def test_an_interrupted_call_goes_on(photos: Path, tmp_path: Path) -> None:
    full = align_photos(photos, tmp_path / "whole", AlignmentSettings())

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        align_photos(photos, tmp_path / "cut", AlignmentSettings(), progress=stop)
    with open(tmp_path / "cut" / "aligned.jsonl", "a") as file:
        file.write('{"photo": "half a li')
    done: list[int] = []
    results = align_photos(
        photos, tmp_path / "cut", AlignmentSettings(), progress=lambda n, _: done.append(n)
    )
    assert done == [2, 3, 4, 5]
    assert json.loads(json.dumps([vars(one) for one in results])) == json.loads(
        json.dumps([vars(one) for one in full])
    )


def test_other_settings_or_a_damaged_list_are_refused(photos: Path, tmp_path: Path) -> None:
    align_photos(photos, tmp_path / "crops", AlignmentSettings())
    with pytest.raises(ValueError, match="contains crops made with other settings"):
        align_photos(photos, tmp_path / "crops", AlignmentSettings(size=96))
    (tmp_path / "crops" / "aligned.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match=r"aligned.jsonl, line 1 is damaged"):
        align_photos(photos, tmp_path / "crops", AlignmentSettings())


def test_photos_called_alike_keep_their_endings(photos: Path, tmp_path: Path) -> None:
    image = cv2.imread(str(photos / "two.png"))
    cv2.imwrite(str(photos / "two.bmp"), image)
    results = align_photos(photos, tmp_path / "crops", AlignmentSettings())
    crops = {one.photo: one.crops for one in results if one.photo.startswith("two")}
    assert crops == {"two.bmp": ("two.bmp.jpg",), "two.png": ("two.png.jpg",)}


def test_a_numbered_crop_is_not_overwritten(photos: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(photos / "two-1.png"), cv2.imread(str(photos / "anna" / "one.png")))
    settings = AlignmentSettings(every_face=True)
    results = {one.photo: one.crops for one in align_photos(photos, tmp_path / "crops", settings)}
    assert results["two-1.png"] == ("two-1.jpg",)
    assert results["two.png"] == ("two.png-1.jpg", "two.png-2.jpg")
    assert results["anna/one.png"] == ("anna/one.jpg",)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "a-1.jpg"], {"a.png": ("a", "a.png"), "a-1.jpg": ("a-1", "a-1")}),
        (["a.png", "a-b.jpg"], {"a.png": ("a", "a"), "a-b.jpg": ("a-b", "a-b")}),
        (["a.png", "a.png.bmp"], {"a.png": ("a", "a"), "a.png.bmp": ("a.png", "a.png")}),
        (
            ["a.png", "a.jpg", "a.png.bmp"],
            {
                "a.png": ("a.png_", "a.png_"),
                "a.jpg": ("a.jpg", "a.jpg"),
                "a.png.bmp": ("a.png.bmp", "a.png.bmp"),
            },
        ),
    ],
)
def test_no_two_photos_write_one_crop(
    names: list[str], expected: dict[str, tuple[str, str]]
) -> None:
    assert _crop_names(names, {}) == expected
    # Resuming gives the remaining photos the same names.
    for name in names:
        crops = (f"{expected[name][0]}.jpg",)
        assert _crop_names(names, {name: AlignedPhoto(photo=name, crops=crops)}) == expected


def test_crops_of_earlier_calls_are_not_overwritten() -> None:
    earlier = {"a.png": AlignedPhoto(photo="a.png", crops=("a-1.jpg", "a-2.jpg"))}
    assert _crop_names(["a.png", "a-1.png"], earlier)["a-1.png"][0] == "a-1.png"


def test_results_from_the_list_equal_new_ones(photos: Path, tmp_path: Path) -> None:
    new = align_photos(photos, tmp_path / "crops", AlignmentSettings(every_face=True))
    assert align_photos(photos, tmp_path / "crops", AlignmentSettings(every_face=True)) == new
    assert len({*new}) == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"photo": ["x"]}', "photo = .'x'.: must be text"),
        (b'{"photo": "x", "crops": "y"}', "crops = 'y': must be a list"),
        (b'{"photo": "x", "eyes": 2}', "no setting 'eyes'"),
        (b'{"photo": "\xff"}', "not JSON"),
        (b'"photo"', "must be a mapping"),
        (b"", "not JSON"),
    ],
)
def test_a_damaged_line_is_named(line: bytes, message: str, photos: Path, tmp_path: Path) -> None:
    align_photos(photos, tmp_path / "crops", AlignmentSettings())
    path = tmp_path / "crops" / "aligned.jsonl"
    settings = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(settings + line + b"\n")
    with pytest.raises(ValueError, match=rf"aligned\.jsonl, line 2 is damaged .*{message}"):
        align_photos(photos, tmp_path / "crops", AlignmentSettings())
    path.write_bytes(settings.replace(b"112", b'"wide"'))
    with pytest.raises(ValueError, match=r"line 1 is damaged .*size = 'wide': must be a whole"):
        align_photos(photos, tmp_path / "crops", AlignmentSettings())


def test_no_photos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contain no photos"):
        align_photos(tmp_path, tmp_path / "crops", AlignmentSettings(detector="mtcnn"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"detector": "eyes"}, "choices: mtcnn, yunet"), ({"detector": "yunet"}, "needs its model")],
)
def test_unknown_detectors(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignmentSettings(**settings)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no real photos here")
@pytest.mark.parametrize("detector", ["yunet", "mtcnn"])
def test_same_people_score_above_different_ones(detector: str, tmp_path: Path) -> None:
    model = str(MODELS / "yunet_s_dynamic.onnx") if detector == "yunet" else None
    settings = AlignmentSettings(detector=detector, model=model)
    results = align_photos(PHOTOS, tmp_path / "crops", settings, workers=2)
    people = [one for one in results if one.photo.startswith("person")]
    assert len(people) == 15 and all(one.crops for one in people)
    network = cv2.dnn.readNetFromONNX(str(MODELS / "mobilefacenet.onnx"))
    images = ImageFiles(tmp_path / "crops", [one.crops[0] for one in people])
    embeddings = []
    for index in range(len(images)):
        pixels = images.read(index).astype(np.float32) / 255
        pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        network.setInput(pixels.transpose(2, 0, 1)[None].astype(np.float32))
        embeddings.append(network.forward()[0])
    unit = np.array(embeddings) / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = unit @ unit.T
    names = np.array([one.photo.split("/")[0] for one in people])
    same = names[:, None] == names
    other = ~same
    np.fill_diagonal(same, False)
    assert cosines[same].min() > cosines[other].max()
