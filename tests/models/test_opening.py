"""One door: every model file opens alike, by its content, and says which weights it holds."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from margrave import backbones
from margrave.models import Model, ModelCard, load_model, open_model, save_card, save_model

ONNX = Path(__file__).parents[1] / "fixtures" / "version_0_1" / "imported.onnx"
NETWORK = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 8, 8],
    "embedding_size": 8,
    "image_size": 32,
}
CARD = ModelCard(backbone=NETWORK, image_size=32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    network = backbones.create(NETWORK)
    save_model(tmp_path / "run" / "model.safetensors", network.state_dict(), CARD)
    return tmp_path / "run"


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    for name in (ONNX.name, f"{ONNX.name}.card.json"):
        shutil.copy(ONNX.with_name(name), tmp_path / name)
    return tmp_path / ONNX.name


def embeds(model: Model) -> tuple[int, ...]:
    images = torch.zeros(2, 3, model.card.image_size, model.card.image_size)
    assert not model.backbone.training and model.backbone is model.backbone
    return tuple(model.backbone(images).shape)


def test_a_file_and_its_folder_are_one_model(run: Path) -> None:
    one, other = open_model(run, device="cpu"), open_model(run / "model.safetensors")
    assert one.path == other.path == run / "model.safetensors"
    assert one.card == other.card == CARD and one.digest == other.digest
    assert embeds(one) == (2, 8)


def test_an_onnx_model_opens_alike(onnx: Path) -> None:
    model = open_model(onnx)
    assert model.path == onnx and len(model.digest) == 64 and not model.state
    assert embeds(model) == (2, 8)


def test_content_decides_and_not_the_name(run: Path, onnx: Path, tmp_path: Path) -> None:
    shutil.copy(run / "model.safetensors", tmp_path / "weights.onnx")
    assert open_model(tmp_path / "weights.onnx").card == CARD
    for ending in ("", ".card.json"):
        shutil.copy(f"{onnx}{ending}", tmp_path / f"network.bin{ending}")
    assert open_model(tmp_path / "network.bin").digest == open_model(onnx).digest


def test_a_changed_card_keeps_the_weights(run: Path, onnx: Path) -> None:
    for path in (run, onnx):
        before = open_model(path)
        save_card(path, replace(before.card, source="changed"))
        after = open_model(path)
        assert after.card == replace(before.card, source="changed")
        assert after.digest == before.digest and after.state.keys() == before.state.keys()


def test_card_and_digest_need_no_trust_in_custom_code(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    card = ModelCard(backbone={"kind": "absent_module:Net"}, image_size=4)
    save_model(tmp_path / "m.safetensors", network.state_dict(), card)
    model = open_model(tmp_path / "m.safetensors")
    assert model.card == card and model.digest
    with pytest.raises(ValueError, match="names 'absent_module:Net'; loading it would run"):
        _ = model.backbone


def test_other_projects_files_are_sent_to_the_importer(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "backbone.pth")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    shutil.copy(ONNX, tmp_path / "bare.onnx")
    for name in ("backbone.pth", "foreign.safetensors", "bare.onnx"):
        with pytest.raises(ValueError, match=rf"{name}.*import"):
            open_model(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        open_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a folder without model"):
        open_model(tmp_path)


def test_the_weights_must_fit_the_card_and_the_device_exist(run: Path) -> None:
    with pytest.raises(ValueError, match="device = 'nowhere' is not available"):
        _ = open_model(run, device="nowhere").backbone
    state, card = load_model(run / "model.safetensors")
    state.pop("conv1.weight")
    save_model(run / "model.safetensors", state, card)
    with pytest.raises(ValueError, match=r"missing: conv1\.weight"):
        _ = open_model(run).backbone
