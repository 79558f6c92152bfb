"""Training on several ranks: the same run as on one, resumed by any number of them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from ranks import on_ranks

from margrave.backbones import BACKBONES
from margrave.data import TrainingImages
from margrave.distributed import full_tensor
from margrave.losses import LOSSES, create
from margrave.training import (
    NonFiniteLossError,
    TrainingSettings,
    TrainingState,
    fit,
    latest_checkpoint,
    read_metrics,
    set_up,
    setup,
)

SIZE, CLASSES, EACH, STEPS = 8, 7, 13, 10
LONGER = STEPS // 5 + 2
KAPPAFACE = {"kind": "kappaface"}
LOSS_SPECS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in LOSSES} | {
    "kappaface, momentum encoder": {**KAPPAFACE, "estimator": "momentum_encoder"},
    "kappaface, memory buffer": {**KAPPAFACE, "estimator": "memory_buffer"},
}
SETTINGS = {
    # 91 images in 5 batches of 17 an epoch, shared out unevenly.
    "epochs": STEPS // 5,
    "batch_size": 17,
    "precision": "float64",
    "clip_norm": 0.5,
    "weight_average": 0.9,
    "accelerator": "cpu",
    "threads": 1,
    "log_steps": 1,
    "optimizer": {"learning_rate": 0.05},
}


class Patches:
    """Tiny images whose identity is a pattern under noise; one is unreadable."""

    def __init__(self) -> None:
        self.labels = np.repeat(np.arange(CLASSES), EACH)
        self.class_names = [f"pattern {number}" for number in range(CLASSES)]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"patch {index}"

    def read(self, index: int) -> np.ndarray:
        if index == 5:
            raise ValueError("patch 5 is torn")
        pattern = np.random.default_rng(int(self.labels[index])).integers(0, 256, (SIZE, SIZE, 3))
        noise = np.random.default_rng(1000 + index).normal(0, 30, (SIZE, SIZE, 3))
        return (pattern + noise).clip(0, 255).astype(np.uint8)


@BACKBONES.register("without_batch_statistics")
class WithoutBatchStatistics(nn.Module):
    """Two layers; `with_them` puts a batch norm between."""

    def __init__(self, with_them: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6) if with_them else nn.GroupNorm(2, 6)
        self.last = nn.Linear(6 * 9, 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.first(images)).tanh().flatten(1))


def training(
    loss: dict[str, Any], head: dict[str, Any] | None = None, backbone: Any = None, **settings: Any
) -> TrainingState:
    spec = backbone or {"kind": "without_batch_statistics"}
    return set_up(
        TrainingSettings.model_validate(SETTINGS | settings),
        TrainingImages(Patches(), SIZE),
        CLASSES,
        spec,
        create(loss),
        head or {"kind": "chunked", "block_size": 2},
    )


def trained(
    folder: Path, loss: dict[str, Any], resume: bool = False, **given: Any
) -> dict[str, Tensor]:
    """All that is learned or counted at the end; of what ranks share out, this rank's part."""
    one = training(loss, **given)
    fit(one, folder, resume=resume)
    lines = read_metrics(folder / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "training"]
    norms = [line["gradient_norm"] for line in lines if line["kind"] == "training"]
    result = {name: value.clone() for name, value in one.tensors().items()}
    return result | {"losses": torch.tensor(losses), "gradient norms": torch.tensor(norms)}


def train_rank(rank: int, folder: str, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All that two ranks are asked, in one go: starting them takes longer."""
    result: dict[str, Any] = {
        name: trained(Path(folder, name), **case) for name, case in cases.items()
    }
    result["running averages"] = average_statistics(Path(folder, "averages"))
    result["diagnosis"] = break_down(rank, Path(folder, "broken"))
    return result


def average_statistics(folder: Path) -> dict[str, Tensor]:
    spec = {"kind": "without_batch_statistics", "with_them": True}
    result = trained(folder, {"kind": "adaface"}, backbone=spec, epochs=1)
    return {name: result[name] for name in result if "running" in name}


def break_down(rank: int, folder: Path) -> str:
    one = training({"kind": "arcface"}, optimizer={"learning_rate": 1e30 if rank else 0.1})
    try:
        fit(one, folder)
    except NonFiniteLossError as error:
        return str(error)
    return "nothing happened"


def assert_same(
    result: list[dict[str, Tensor]], expected: dict[str, Tensor], tolerance: float = 1e-8
) -> None:
    split = training(KAPPAFACE | {"estimator": "memory_buffer"}).head.sharded_entries()
    split |= training(KAPPAFACE).head.sharded_entries() | {"weight_momentum": CLASSES, "bias": 7}
    for name, value in expected.items():
        parts = [rank[name] for rank in result]
        if name.removeprefix("head.") in split:
            together = torch.cat(parts)
        else:
            together = parts[0]
            assert all(torch.equal(part, together) for part in parts), f"ranks differ in {name}"
        torch.testing.assert_close(
            together,
            value,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda message, name=name: f"{name}: {message}",
        )


CASES: dict[str, dict[str, Any]] = {name: {"loss": spec} for name, spec in LOSS_SPECS.items()} | {
    "accumulated": {"loss": {"kind": "arcface"}, "accumulate": 3},
    "adamw": {"loss": {"kind": "adaface"}, "optimizer": {"kind": "adamw", "learning_rate": 0.01}},
    "centres in backward": {
        "loss": {"kind": "curricularface"},
        "optimizer": {"learning_rate": 0.05, "centers_in_backward": True},
    },
    "sampled": {
        "loss": {"kind": "curricularface"},
        "head": {"kind": "chunked", "sample_rate": 1.0},
    },
    "three centers": {
        "loss": {"kind": "uniface"},
        "head": {"kind": "chunked", "block_size": 2, "centers_per_class": 3},
        "clip_norm": 1.0,
    },
}


RESUMED = ("arcface", "kappaface, memory buffer", "adamw", "centres in backward", "sampled",
           "three centers")  # fmt: skip


def go_on(rank: int, folder: str) -> dict[str, Any]:
    del rank
    return {
        name: trained(Path(folder, name), **CASES[name], resume=True, epochs=LONGER)
        for name in RESUMED
    }


# One test of many parts, because starting ranks takes long.
def test_two_ranks_are_one_run(tmp_path: Path, subtests: pytest.Subtests) -> None:
    from_two = on_ranks(2, train_rank, str(tmp_path / "two"), CASES)
    for name, case in CASES.items():
        with subtests.test(name):
            one = trained(tmp_path / "one" / name, **case)
            assert len(one["losses"]) == STEPS
            assert_same([rank[name] for rank in from_two], one)
    with subtests.test("running averages are the same on every rank"):
        one, other = (rank["running averages"] for rank in from_two)
        assert one and all(torch.equal(one[name], other[name]) for name in one)
    with subtests.test("every rank stops with the diagnosis"):
        one, other = (rank["diagnosis"] for rank in from_two)
        assert one == other and "training stopped at step" in one

    for name in RESUMED:
        # A longer run's learning rate falls later, so the whole is one of two parts likewise.
        again = {"resume": True, "epochs": LONGER}
        shutil.copytree(tmp_path / "two" / name, tmp_path / "alone" / name)
        expected = trained(tmp_path / "one" / name, **CASES[name], **again)
        with subtests.test(f"{name}, saved by two, resumed by one"):
            result = trained(tmp_path / "alone" / name, **CASES[name], **again)
            # Ten more steps; the memory's normalized differences magnify roundings.
            assert_same([result], expected, 1e-6)
        torch.save(expected, tmp_path / f"{name}.pt")
    result = on_ranks(3, go_on, str(tmp_path / "two"))
    for name in RESUMED:
        with subtests.test(f"{name}, saved by two, resumed by three"):
            expected = torch.load(tmp_path / f"{name}.pt")
            assert_same([rank[name] for rank in result], expected, 1e-6)


def test_what_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="'dense' cannot be split over 2 processes"):
        setup._choose_head({"kind": "dense"}, 2)
    few = TrainingSettings(batch_size=6, accumulate=2)
    with pytest.raises(ValueError, match="set it to 8 or more"):
        setup._check_batch_size(few, 2, num_images=100)


def test_one_rank_needs_no_process_group(tmp_path: Path) -> None:
    trained(tmp_path, {"kind": "arcface"}, epochs=1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None and checkpoint.name == "checkpoint-1"


FSDP: dict[str, dict[str, Any]] = {
    "sgd": {"loss": {"kind": "adaface"}, "strategy": "fsdp"},
    "a bias": {"loss": {"kind": "uniface"}, "strategy": "fsdp", "clip_norm": 1.0},
    "adamw": {
        "loss": {"kind": "kappaface", "estimator": "momentum_encoder"},
        "strategy": "fsdp",
        "accumulate": 2,
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
    },
}


def train_split_backbone(rank: int, folder: str) -> dict[str, Any]:
    del rank
    result = {}
    for name, case in FSDP.items():
        values = trained(Path(folder, name), **case)
        result[name] = {key: full_tensor(value) for key, value in values.items()}
    return result


def test_a_backbone_split_over_ranks_is_one_run_too(tmp_path: Path) -> None:
    result = on_ranks(3, train_split_backbone, str(tmp_path / "split"))
    for name, case in FSDP.items():
        one = trained(tmp_path / "one" / name, **case)
        assert_same([rank[name] for rank in result], one)
        # What it saved, one process reads without FSDP.
        alone = training(case["loss"], optimizer=case.get("optimizer", {}), accumulate=2)
        checkpoint = latest_checkpoint(tmp_path / "split" / name)
        assert checkpoint is not None
        alone.load(checkpoint)
        assert torch.equal(alone.network.last.weight, result[0][name]["backbone.last.weight"])
        for parameter in alone.network.parameters():
            state = alone.optimizer.state[parameter].values()
            assert all(value.ndim == 0 or value.shape == parameter.shape for value in state)
