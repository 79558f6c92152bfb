"""Detectors on real photos, where available, and MTCNN's weights and parts everywhere."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from margrave.data import ImageFiles, image_paths
from margrave.faces import MTCNN, Detection, YuNet, mtcnn

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS, MODEL = SHARED / "data" / "photos", SHARED / "models" / "yunet_s_dynamic.onnx"

if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert PHOTOS.is_dir() and MODEL.is_file(), "the real photos are required here"
real = pytest.mark.skipif(not (PHOTOS.is_dir() and MODEL.is_file()), reason="no real photos here")


@pytest.fixture(scope="module")
def detections() -> dict[str, tuple[list[Detection], list[Detection]]]:
    yunet, cascade = YuNet(MODEL), MTCNN()
    paths = image_paths(PHOTOS)
    files = ImageFiles(PHOTOS, paths)
    images = {path: files.read(number) for number, path in enumerate(paths)}
    return {path: (yunet.detect(image), cascade.detect(image)) for path, image in images.items()}


@real
def test_every_persons_face_is_found_by_both(detections: dict) -> None:
    people = {path: faces for path, faces in detections.items() if path.startswith("person")}
    assert len(people) == 15
    for path, (yunet, cascade) in people.items():
        assert yunet and cascade, path


@real
def test_both_agree_on_the_groups(detections: dict) -> None:
    groups = {path: faces for path, faces in detections.items() if path.startswith("groups")}
    for path, (yunet, cascade) in groups.items():
        assert len(yunet) >= 2, path
        assert abs(len(yunet) - len(cascade)) <= 1, path


@real
def test_landmarks_agree_within_a_few_hundredths_of_the_width(detections: dict) -> None:
    distances = {
        path: [
            np.linalg.norm(one.landmarks - other.landmarks, axis=1).mean() / other.width
            for one in cascade
            for other in yunet
            if np.abs(one.box - other.box).mean() < other.width / 4
        ]
        for path, (yunet, cascade) in detections.items()
    }
    for path, (yunet, cascade) in detections.items():
        assert len(distances[path]) == min(len(yunet), len(cascade))
        assert max(distances[path]) <= 0.04, path
    assert np.mean([distance for each in distances.values() for distance in each]) <= 0.03


def test_unknown_weights_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mtcnn.WEIGHT_DIGESTS, "pnet", "0" * 64)
    with pytest.raises(
        ValueError, match=r"so they are not loaded\. .*: pip install mtcnn==1\.0\.0"
    ):
        mtcnn.load_weights("pnet")


def test_missing_weights_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtcnn, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .margrave\[align\]"):
        MTCNN()


def test_nothing_is_found_in_nothing() -> None:
    cascade = MTCNN()
    for shape in ((5, 5, 3), (40, 300, 3), (200, 200, 3)):
        assert cascade.detect(np.full(shape, 127, np.uint8)) == []


def test_networks_have_the_output_shapes_of_the_paper() -> None:
    cascade = MTCNN()
    shifts, scores = cascade.propose(torch.zeros(1, 3, 30, 20))
    assert shifts.shape == (1, 4, 10, 5) and scores.shape == (1, 2, 10, 5)
    assert [output.shape[1] for output in cascade.refine(torch.zeros(2, 3, 24, 24))] == [4, 2]
    assert [output.shape[1] for output in cascade.finish(torch.zeros(2, 3, 48, 48))] == [4, 10, 2]


def test_suppression_keeps_the_best_of_those_that_overlap() -> None:
    boxes = np.array(
        [[0, 0, 10, 10, 0.8], [1, 1, 11, 11, 0.9], [50, 50, 60, 60, 0.7], [2, 2, 6, 6, 0.6]]
    )
    assert mtcnn._non_maximum_suppression(boxes, 0.5).tolist() == [1, 2, 3]
    assert mtcnn._non_maximum_suppression(boxes, 0.5, relative_to_smaller=True).tolist() == [1, 2]


@real
def test_opencv_prints_nothing_when_yunet_loads(capfd: pytest.CaptureFixture[str]) -> None:
    level = cv2.utils.logging.getLogLevel()
    YuNet(MODEL)
    assert capfd.readouterr() == ("", "")
    assert cv2.utils.logging.getLogLevel() == level


def test_no_yunet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="does not exist; give the path of YuNet's ONNX model"):
        YuNet(tmp_path / "absent.onnx")
    (tmp_path / "wrong.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is not a YuNet model"):
        YuNet(tmp_path / "wrong.onnx")
    assert capfd.readouterr() == ("", "")
