"""Pictures are written, and show what they are given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from margrave.pictures import contact_sheet, draw_curves
from margrave.pictures.curves import _running_mean


def test_contact_sheet_places_images_in_rows(tmp_path: Path) -> None:
    red, blue = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    contact_sheet([[red, blue], [blue]], tmp_path / "sheet.png")
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "sheet.png")), cv2.COLOR_BGR2RGB)
    assert sheet.shape == (28, 28, 3)
    assert sheet[8, 8].tolist() == [255, 0, 0]
    assert sheet[8, 20].tolist() == sheet[20, 8].tolist() == [0, 0, 255]
    assert sheet[20, 20].tolist() == [255, 255, 255]


def test_contact_sheet_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images of one size"):
        contact_sheet([], tmp_path / "sheet.png")


def test_curves_are_drawn(tmp_path: Path) -> None:
    keys = ("epoch", "loss", "feature_norm", "learning_rate")
    lines = [{"kind": "training", **dict.fromkeys(keys, float(step))} for step in range(20)]
    draw_curves(lines, tmp_path / "curves.png", {"unseen": ([0, 0.1, 1], [0, 0.9, 1])})
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_a_roc_alone_is_drawn(tmp_path: Path) -> None:
    draw_curves([], tmp_path / "curves.png", {"unseen": ([0, 0.1, 1], [0, 0.9, 1])})
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_evaluations_of_one_epoch_are_drawn(tmp_path: Path) -> None:
    lines = [{"kind": "evaluation", "set": "unseen", "epoch": 3, "accuracy": 0.9}]
    draw_curves(lines, tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


def test_smoothing_keeps_the_ends_and_the_slope() -> None:
    values = np.arange(30.0)
    np.testing.assert_allclose(_running_mean(values), values)


def test_curves_without_anything(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither training metrics nor evaluations"):
        draw_curves([], tmp_path / "curves.png")
