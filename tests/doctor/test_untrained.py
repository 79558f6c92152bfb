"""Networks of random weights are named first, in every file; trained ones are not accused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner
from untrained_zoo import as_if_trained, touched

from margrave import backbones
from margrave.cli import app
from margrave.doctor.untrained import eigenvalue_score, training_evidence
from margrave.models import ModelCard, save_model

SMALL = {"block_counts": [1, 1, 1, 1], "embedding_size": 32, "image_size": 32}
BACKBONES: dict[str, dict[str, Any]] = {
    "iresnet": {"kind": "iresnet", "channels": [16, 16, 32, 32], **SMALL},
    "gates": {"kind": "iresnet", "channels": [16, 16, 32, 32], "channel_gates": True,
              "initialization": "fan_out", **SMALL},
    "bottleneck": {"kind": "iresnet", "block": "bottleneck", "channels": [32, 32, 64, 64],
                   **SMALL},
    "mbf": {"kind": "mbf", "embedding_size": 64, "image_size": 32},
    "curricular_mbf": {"kind": "curricular_mbf", "embedding_size": 64, "image_size": 32},
    "vit": {"kind": "vit", "width": 64, "depth": 2, "embedding_size": 32, "image_size": 36},
}  # fmt: skip
IRESNET = BACKBONES["iresnet"]


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *(str(part) for part in arguments)])


@pytest.fixture
def fresh() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return backbones.create(IRESNET).state_dict()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_backbone(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = backbones.create(BACKBONES[name])
    evidence = training_evidence(network.state_dict())
    assert evidence.untrained and evidence.structured_matrices == 0
    assert evidence.untouched_norms == evidence.norms
    assert evidence.unused_batch_norms == evidence.batch_norms > 0
    used = training_evidence(touched(network, BACKBONES[name]["image_size"]).state_dict())
    assert used.untrained and used.unused_batch_norms == 0
    assert training_evidence(as_if_trained(network).state_dict()).untrained is False


@pytest.mark.parametrize("name", BACKBONES)
def test_one_gradient_step_is_training_or_not_sure(name: str) -> None:
    """Scales and shifts move at once; they are never called untouched."""
    torch.manual_seed(0)
    network = backbones.create(BACKBONES[name]).train()
    size = BACKBONES[name]["image_size"]
    network(torch.randn(4, 3, size, size)).square().sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    evidence = training_evidence(network.state_dict())
    assert evidence.untouched_norms < evidence.norms


@pytest.mark.parametrize(
    "draw",
    [torch.randn_like, torch.rand_like, lambda x: torch.randn_like(x).clamp(-1, 1)],
    ids=["normal", "uniform", "clipped"],
)
def test_all_tensors_are_random(
    draw: Callable[[Tensor], Tensor], fresh: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = {name: draw(x) if x.is_floating_point() else x for name, x in fresh.items()}
    torch.save({"state_dict": state, "epoch": 12}, tmp_path / "model.pth.tar")
    assert (
        doctor(tmp_path / "model.pth.tar").output.lstrip().startswith("serious untrained_weights")
    )


def write_onnx(path: Path, network: torch.nn.Module) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.onnx.export(network.eval(), (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False)


FILES: dict[str, Callable[[Path, torch.nn.Module], Any]] = {
    "model.pth.tar": lambda path, net: torch.save({"state_dict": net.state_dict()}, path),
    "pytorch_model.bin": lambda path, net: torch.save(net.state_dict(), path),
    "old.weights": lambda path, net: torch.save(
        net.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "old.bin": lambda path, net: torch.save(
        net.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "tensors.bin": lambda path, net: save_file(net.state_dict(), path),
    "tensors.pth": lambda path, net: save_file(net.state_dict(), path),
    "model.safetensors": lambda path, net: save_model(
        path, net.state_dict(), ModelCard(backbone=IRESNET, image_size=32)
    ),
    "model.onnx": write_onnx,
    "model": write_onnx,
    "onnx.bin": write_onnx,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_every_file_by_its_content(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = touched(backbones.create(IRESNET), 32)
    FILES[name](tmp_path / name, network)
    result = doctor(tmp_path / name)
    assert result.exit_code == 1
    assert result.output.lstrip().startswith("serious untrained_weights"), result.output
    (tmp_path / name).unlink()
    FILES[name](tmp_path / name, as_if_trained(network))
    result = doctor(tmp_path / name)
    assert "untrained" not in result.output and "random" not in result.output


def test_options_of_import(tmp_path: Path, fresh: dict[str, Tensor]) -> None:
    trained = as_if_trained(backbones.create(IRESNET)).state_dict()
    path = tmp_path / "two.pth"
    torch.save({"teacher": fresh, "student": trained}, path)
    assert "--key" in doctor(path).output
    assert "untrained_weights" in doctor(path, "--key", "teacher").output
    assert "untrained_weights" not in doctor(path, "--key", "student").output
    torch.save({f"own.{name}": value for name, value in fresh.items()}, tmp_path / "own.pth")
    assert "unknown_layout" in doctor(tmp_path / "own.pth").output


def test_a_file_that_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of the kind")
    assert "is not a model, a checkpoint" in str(doctor(tmp_path / "notes.txt").exception)
    (tmp_path / "empty.pth.tar").write_bytes(b"")
    assert "unreadable_checkpoint" in doctor(tmp_path / "empty.pth.tar").output


def test_too_little_to_tell(tmp_path: Path) -> None:
    evidence = training_evidence({"weight": torch.randn(4, 700)})
    assert evidence.untrained is None
    assert eigenvalue_score(torch.ones(32, 32)) is None
    assert eigenvalue_score(torch.full((32, 32), torch.nan)) is None
    assert eigenvalue_score(torch.zeros(32, 32, dtype=torch.int64)) is None
