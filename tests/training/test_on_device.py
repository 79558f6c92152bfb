"""Whole trainings on the pretended accelerator: the CPU's numbers, one wait a step, float16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from margrave.data import TrainingImages, balanced_pairs
from margrave.inference import Embedder
from margrave.losses import create
from margrave.models import ModelCard
from margrave.protocols import evaluate_embedder
from margrave.training import (
    MetricsLog,
    NonFiniteLossError,
    StepReport,
    TrainingSettings,
    TrainingState,
    fit,
    latest_checkpoint,
    read_metrics,
    set_up,
)
from margrave.training import loop as loop_module

if TYPE_CHECKING:
    from pretended_device import PretendedDevice

SIZE, CLASSES, EACH, BATCH = 16, 4, 12, 8
STEPS = CLASSES * EACH // BATCH
BACKBONE = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 8, 8],
    "image_size": SIZE,
    "embedding_size": 8,
}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "adaface, averaged and clipped": (
        {"kind": "adaface"}, {"kind": "chunked", "block_size": 3, "compiled": False},
        {"weight_average": 0.9, "clip_norm": 1.0},
    ),
    "curricularface, accumulated": (
        {"kind": "curricularface"}, {"kind": "dense"}, {"accumulate": 3},
    ),
    "kappaface, momentum encoder": (
        {"kind": "kappaface", "estimator": "momentum_encoder"}, {"kind": "chunked"}, {},
    ),
    "kappaface, memory buffer": (
        {"kind": "kappaface", "estimator": "memory_buffer"}, {"kind": "chunked"}, {},
    ),
    "sampled": ({"kind": "arcface"}, {"kind": "chunked", "sample_rate": 0.7}, {}),
    "updated in the backward pass": (
        {"kind": "cosface"}, {"kind": "chunked"},
        {"optimizer": {"learning_rate": 0.02, "centers_in_backward": True}},
    ),
    "adamw": ({"kind": "cosface"}, {"kind": "chunked"},
              {"optimizer": {"kind": "adamw", "learning_rate": 0.003}}),
}  # fmt: skip


class Patches:
    """Tiny images whose identity is a pattern under noise."""

    def __init__(self) -> None:
        self.labels = np.repeat(np.arange(CLASSES), EACH)
        self.class_names = [f"pattern {number}" for number in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"patch {index}"

    def read(self, index: int) -> np.ndarray:
        pattern = np.random.default_rng(int(self.labels[index])).integers(0, 256, (SIZE, SIZE, 3))
        noise = np.random.default_rng(1000 + index).normal(0, 30, (SIZE, SIZE, 3))
        return (pattern + noise).clip(0, 255).astype(np.uint8)


def training(loss: dict[str, Any], head: dict[str, Any], **settings: Any) -> TrainingState:
    values = {"epochs": 2, "batch_size": BATCH, "log_steps": 1, "threads": 1, "accelerator": "cpu"}
    values |= {"precision": "float32", "optimizer": {"learning_rate": 0.02}}
    return set_up(
        TrainingSettings.model_validate(values | settings),
        TrainingImages(Patches(), SIZE),
        CLASSES,
        BACKBONE,
        create({"scale": 16, **loss}),
        head,
    )


@pytest.fixture
def placed(pretended: PretendedDevice, monkeypatch: pytest.MonkeyPatch) -> PretendedDevice:
    """The pretended device, on which `training` then builds everything."""
    monkeypatch.setattr("margrave.training.setup._launch_fabric", lambda *_: pretended.fabric())
    return pretended


def losses(folder: Path) -> list[float]:
    return [
        line["loss"]
        for line in read_metrics(folder / "metrics.jsonl")
        if line["kind"] == "training"
    ]


def accuracy(trained: TrainingState) -> float:
    """Of pairs, as training evaluates."""
    images = Patches()
    pairs = balanced_pairs(images.labels, 40, seed=0)
    embedder = Embedder(trained.gather_model(), ModelCard(backbone=BACKBONE, image_size=SIZE))
    return evaluate_embedder(embedder, images, pairs, resamples=0).figure("accuracy").value or 0.0


def waits_of_steps(trained: TrainingState, device: PretendedDevice, folder: Path) -> list[int]:
    """How often the host waited for the device in each step but those that a checkpoint follows."""
    counts, before = [], len(device.waits)

    def count(step: StepReport) -> None:
        nonlocal before
        if step.step % STEPS != 1:
            counts.append(len(device.waits) - before)
        before = len(device.waits)

    def evaluate(trained: TrainingState, log: MetricsLog) -> None:
        assert accuracy(trained) >= 0.5

    fit(trained, folder, report=count, after_epoch=evaluate)
    return counts


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_gives_the_cpus_numbers_and_waits_once_a_step(
    name: str, pretended: PretendedDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loss, head, settings = RUNS[name]
    here = training(loss, head, **settings)
    fit(here, tmp_path / "here")
    monkeypatch.setattr("margrave.training.setup._launch_fabric", lambda *_: pretended.fabric())
    there = training(loss, head, **settings)
    counts = waits_of_steps(there, pretended, tmp_path / "there")
    assert len(counts) == 2 * (STEPS - 1)
    assert set(counts) == {1}
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), rel=5e-3)
    assert accuracy(there) == pytest.approx(accuracy(here), abs=0.051)
    for part, values in there.tensors().items():
        assert values.device == pretended.device, part


def test_a_value_read_in_the_loop_is_counted(
    placed: PretendedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop_module.clip_gradients

    def planted(*given: Any, **settings: Any) -> torch.Tensor:
        norm = plain(*given, **settings)
        assert norm.item() >= 0
        return norm

    monkeypatch.setattr(loop_module, "clip_gradients", planted)
    counts = waits_of_steps(training({"kind": "arcface"}, {"kind": "chunked"}), placed, tmp_path)
    assert set(counts) == {2}


def test_a_tensor_of_the_hosts_in_the_loop_is_refused(
    placed: PretendedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop_module.normalize
    monkeypatch.setattr(loop_module, "normalize", lambda images: plain(images) * torch.ones(SIZE))
    with pytest.raises(RuntimeError, match="different devices"):
        fit(training({"kind": "arcface"}, {"kind": "chunked"}), tmp_path)


class Stop(Exception):
    """Raised in the middle of a run."""


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_resumes_exactly(placed: PretendedDevice, tmp_path: Path, precision: str) -> None:
    if (precision == "float32") != placed.float64:
        pytest.skip("each precision once, with float64 and without")
    settings = {"precision": precision, "checkpoint_seconds": 0.0, "weight_average": 0.9}
    given: Any = {"kind": "adaface"}, {"kind": "chunked"}
    full = training(*given, **settings)
    fit(full, tmp_path / "whole")

    def stop(step: StepReport) -> None:
        if step.step == 9:
            raise Stop

    with pytest.raises(Stop):
        fit(training(*given, **settings), tmp_path / "cut", report=stop)
    again = training(*given, **settings)
    fit(again, tmp_path / "cut", resume=True)
    for name, values in full.tensors().items():
        assert torch.equal(again.tensors()[name].cpu(), values.cpu()), name
    if precision == "float16":
        assert again.loss_scale is not None and full.loss_scale is not None
        assert again.loss_scale.state() == full.loss_scale.state()


def scaled_training(scale: float = 2.0**8, **settings: Any) -> TrainingState:
    """A float16 training whose gradients do not overflow by themselves."""
    trained = training({"kind": "adaface"}, {"kind": "chunked"}, precision="float16", **settings)
    assert trained.loss_scale is not None
    trained.loss_scale.scale = scale
    return trained


def test_float16_learns_as_float32_does(placed: PretendedDevice, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 3, "optimizer": {"learning_rate": 0.0003}}
    for precision in ("float32", "bfloat16"):
        one = training({"kind": "adaface"}, {"kind": "chunked"}, precision=precision, **settings)
        fit(one, tmp_path / precision)
    fit(scaled_training(**settings), tmp_path / "float16")
    exact, scaled, coarse = (
        np.array(losses(tmp_path / name)) for name in ("float32", "float16", "bfloat16")
    )
    # Its resolution is eight times bfloat16's, so its error is at most that.
    assert np.abs(scaled - exact).mean() <= np.abs(coarse - exact).mean()
    np.testing.assert_allclose(scaled, exact, atol=0.03 * exact.max())
    assert scaled[-3:].mean() < 0.8 * scaled[:3].mean()


def planted_overflow(
    monkeypatch: pytest.MonkeyPatch, trained: TrainingState, steps: set[int]
) -> None:
    """Let the gradients of some steps overflow, the loss being finite."""
    plain = loop_module.clip_gradients

    def overflowing(parameters: Any, *given: Any, **settings: Any) -> torch.Tensor:
        parameters = list(parameters)
        if trained.position.step in steps:
            parameters[0].grad.mul_(float("inf"))
        return plain(parameters, *given, **settings)

    monkeypatch.setattr(loop_module, "clip_gradients", overflowing)


def test_overflows_are_skipped_and_counted(
    placed: PretendedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = scaled_training(2.0**8)
    assert trained.loss_scale is not None
    planted_overflow(monkeypatch, trained, {0, 1, 5})
    weights = []

    def keep(step: StepReport) -> None:
        weights.append(trained.network.state_dict()["fc.weight"].cpu().clone())

    fit(trained, tmp_path, report=keep)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[4], weights[5])
    assert not torch.equal(weights[1], weights[2])
    assert trained.loss_scale.skipped_steps == 3
    assert trained.loss_scale.scale == 2.0**5
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "skipped_steps" in line]
    assert [line["skipped_steps"] for line in lines[:7]] == [1, 2, 2, 2, 2, 3, 3]
    assert lines[0]["gradient_norm"] is None
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_gradients_that_always_overflow_end_the_run(
    placed: PretendedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = scaled_training(2.0**8, epochs=5)
    planted_overflow(monkeypatch, trained, set(range(100)))
    with pytest.raises(NonFiniteLossError, match="the loss is finite but its gradient is not"):
        fit(trained, tmp_path)
    assert trained.position.step == 8


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_loss_that_is_not_finite_moves_no_weight(
    placed: PretendedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    trained = training({"kind": "adaface"}, {"kind": "chunked"}, precision=precision)
    plain = loop_module.normalize

    def broken(images: torch.Tensor) -> torch.Tensor:
        factor = float("nan") if trained.position.step == 7 else 1.0
        return plain(images) * factor

    monkeypatch.setattr(loop_module, "normalize", broken)
    weights = []

    def keep(step: StepReport) -> None:
        weights.append({name: value.cpu() for name, value in trained.tensors().items()})

    with pytest.raises(
        NonFiniteLossError, match="8 of 8 embeddings from the backbone are not finite"
    ):
        fit(trained, tmp_path, report=keep)
    for name, value in trained.network.named_parameters():
        assert torch.equal(value.cpu(), weights[-1][f"backbone.{name}"]), name
    assert latest_checkpoint(tmp_path) is not None
