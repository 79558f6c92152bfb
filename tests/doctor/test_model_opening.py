"""How ONNX models and damaged model files are opened for examination."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from untrained_zoo import as_if_trained

from margrave import backbones
from margrave.doctor import examine_model
from margrave.doctor.model_opening import open_for_examination
from margrave.models import ImportOptions, ModelCard, save_model
from margrave.models.onnx_card import write_card

SMALL_NETWORK = {"kind": "iresnet", "block_counts": [1, 1, 1, 1], "channels": [16, 16, 32, 32],
                 "embedding_size": 32}  # fmt: skip


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    path = tmp_path / "model.onnx"
    torch.onnx.export(network.eval(), (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False)
    return path


def test_options_change_only_what_they_state_of_a_card(onnx_model: Path) -> None:
    card = ModelCard(backbone={"kind": "onnx"}, image_size=32, mean=0.3, std=0.2)
    write_card(onnx_model, card)
    findings = examine_model(onnx_model, options=ImportOptions(color_order="bgr"))
    (described,) = [finding for finding in findings if finding.fault == "model"]
    assert "BGR, (pixel - 0.3) / 0.2" in described.message


def test_what_is_assumed_is_named(onnx_model: Path) -> None:
    findings = examine_model(onnx_model, options=ImportOptions(mean=0.25, std=0.25))
    (assumed,) = [finding for finding in findings if finding.fault == "preparation_not_checked"]
    assert assumed.message.endswith("; assumed: color_order = rgb")


def test_a_model_file_with_a_damaged_card_says_so(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    card = ModelCard(backbone={"kind": "mbf"}, image_size=112)
    save_model(path, {"weight": torch.ones(2, 2)}, card)
    content = path.read_bytes()
    damaged = content.replace(b"image_size", b"image_sice")
    assert damaged != content
    path.write_bytes(damaged)
    (finding,) = [each for each in examine_model(path) if each.severity == "serious"]
    assert "image_sice" in finding.message


def test_the_color_order_that_was_assumed_is_known(onnx_model: Path, tmp_path: Path) -> None:
    network = as_if_trained(backbones.create(SMALL_NETWORK))
    checkpoint = tmp_path / "model.pth"
    torch.save(network.state_dict(), checkpoint)
    write_card(onnx_model, ModelCard(backbone={"kind": "onnx"}, image_size=32, color_order="bgr"))
    for path, stated, expected in (
        (checkpoint, None, "rgb"),
        (checkpoint, "bgr", "bgr"),
        (onnx_model, None, "bgr"),
        (onnx_model, "rgb", "rgb"),
    ):
        opened = open_for_examination(path, ImportOptions(color_order=stated), False)
        assert opened.embedder is not None and opened.color_order == expected
