"""``margrave export``, as a user has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from margrave import backbones
from margrave.cli import app
from margrave.inference import FeatureStore
from margrave.models import ModelCard, OperatingPoint, open_model, save_model
from margrave.synthetic import SyntheticFaces

SPEC = {"kind": "vit", "width": 16, "depth": 1, "attention_heads": 2, "image_size": 32}


def margrave(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = backbones.create({**SPEC, "embedding_size": 16})
    points = (OperatingPoint(far=0.1, threshold=0.9),)
    spec = {**SPEC, "embedding_size": 16}
    card = ModelCard(backbone=spec, image_size=32, operating_points=points)
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / "model.safetensors", network.state_dict(), card)
    return tmp_path / "run"


def test_a_runs_model_becomes_a_file_for_every_command(model: Path, tmp_path: Path) -> None:
    faces, target = tmp_path / "faces", tmp_path / "model.onnx"
    SyntheticFaces(num_identities=10, images_per_identity=4, image_size=32).write(faces)
    printed = margrave("export", model, target, "--faces", faces, "--number", 12)
    assert "threshold for FAR 0.1" in printed and "0 of 66 differ" in printed
    assert "thresholds for FAR: 0.1" in printed
    stores = []
    for runtime in ("onnxruntime", "openvino"):
        margrave("embed", target, faces, tmp_path / runtime, "--runtime", runtime)
        stores.append(FeatureStore(tmp_path / runtime).embeddings[:])
    np.testing.assert_allclose(stores[0], stores[1], rtol=1e-3, atol=1e-4)
    margrave("import", target, tmp_path / "copy.onnx")
    assert open_model(tmp_path / "copy.onnx").card == open_model(target).card
    options = ("--int8", "--pairs", faces, "--drawn", 40, "--allowed-loss", 100)
    printed = margrave("export", model, tmp_path / "int8.onnx", *options)
    assert "int8 costs at most" in printed and "chosen on these pairs, for FAR 0.1" in printed


def test_options_that_do_not_fit_together(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    with pytest.raises(ValueError, match="--pairs and --images need --int8: add it"):
        margrave("export", model, target, "--pairs", tmp_path)
    with pytest.raises(ValueError, match="is a folder of images; leave out --images"):
        margrave("export", model, target, "--int8", "--pairs", tmp_path, "--images", "faces")
    with pytest.raises(ValueError, match=r"--int8 shifts scores.*--pairs"):
        margrave("export", model, target, "--int8")
