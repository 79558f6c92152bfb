"""A statistic from outside the package supplies its values to every head, compiled or not."""

from __future__ import annotations

import copy
import itertools
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from loss_with_statistic import SpreadFace
from ranks import on_ranks

from margrave.cli import app
from margrave.heads import ChunkedHead, DenseHead, Head, ShardedHead
from margrave.losses import Context, Loss, create
from margrave.registry import names_from_file
from margrave.statistics import Observation, Statistic, StatisticSpec, create_statistics

CLASSES, FEATURES, BATCH, STEPS = 23, 8, 9, 3
SAMPLES = {2: (2, 7), 3: (4, 1, 4)}


class Difficulty(Statistic):
    """The last batch's mean of cosθ_y, and how far below it each sample is."""

    mean: Tensor

    def __init__(self, spec: StatisticSpec) -> None:
        super().__init__(spec)
        self.register_buffer("mean", torch.zeros(()))

    def update(self, observation: Observation) -> None:
        self.mean.copy_(observation.target_cosine.mean())

    def context(self, observation: Observation) -> dict[str, Tensor]:
        mean = self.mean.to(observation.target_cosine, copy=True)
        return {"mean": mean, "difficulty": mean - observation.target_cosine}


@dataclass(frozen=True, kw_only=True)
class DifficultyFace(Loss):
    """Reads both values in its target, its negatives and their slope."""

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        return {f"{__name__}:Difficulty": {}, "iteration": {}}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        return cosine - context["difficulty"].abs() / context["iteration"]

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        return cosines * (1.5 + context["difficulty"])[:, None] + context["mean"]

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        slope = (1.5 + context["difficulty"])[:, None].expand_as(cosines).clone()
        return self.negatives(cosines, target_cosine, context), slope


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            6 * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def train(head: Head, part: slice = slice(None), wrap: Any = None) -> dict[str, Tensor]:
    """The last step's loss and gradients, and every buffer."""
    results: dict[str, Tensor] = {}
    for embeddings, labels in batches():
        embeddings = embeddings[part].clone().requires_grad_()
        head.zero_grad()
        call = head if wrap is None else wrap(head)
        loss = call(embeddings, labels[part], reduction="none")
        (loss * torch.linspace(0.1, 1, BATCH)[part]).sum().mul(head.world.size).backward()
        assert embeddings.grad is not None
        results = {"loss": loss.detach(), "embeddings": embeddings.grad / head.world.size}
    results |= {name: parameter.grad.to_dense() for name, parameter in head.named_parameters()}  # pyright: ignore[reportOptionalMemberAccess]
    buffers = {name: value for name, value in head.named_buffers() if name != "draws"}
    return copy.deepcopy(results | buffers)


def build(kind: type[Head], loss: Loss, **settings: Any) -> Head:
    torch.manual_seed(0)
    return kind(loss, CLASSES, FEATURES, **settings).double()


def checkpointed(head: Head) -> Any:
    return lambda *batch, **options: checkpoint(head, *batch, **options, use_reentrant=False)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ChunkedHead, {"block_size": 7}),
        (ChunkedHead, {"block_size": 7, "memory_budget": 0}),
        (ChunkedHead, {"block_size": 7, "compiled": True}),
        (ChunkedHead, {"block_size": 5, "sample_rate": 1.0}),
        (ShardedHead, {"block_size": 10}),
    ],
    ids=str,
)
@pytest.mark.parametrize("wrap", [None, checkpointed])
def test_every_head_is_the_dense_one(kind: type[Head], settings: dict[str, Any], wrap: Any) -> None:
    for loss in (SpreadFace(), DifficultyFace()):
        expected = train(build(DenseHead, loss))
        result = train(build(kind, loss, **settings), wrap=wrap)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def train_rank(rank: int, samples: tuple[int, ...]) -> list[dict[str, Tensor]]:
    part = slice(sum(samples[:rank]), sum(samples[: rank + 1]))
    return [train(build(ShardedHead, loss), part) for loss in (SpreadFace(), DifficultyFace())]


@pytest.mark.parametrize("size", SAMPLES)
def test_ranks_are_the_dense_head(size: int) -> None:
    from_ranks = on_ranks(size, train_rank, SAMPLES[size])
    for number, loss in enumerate((SpreadFace(), DifficultyFace())):
        for name, expected in train(build(DenseHead, loss)).items():
            parts = [rank[number][name] for rank in from_ranks]
            if name.startswith("statistics."):
                assert all(torch.equal(part, parts[0]) for part in parts)
                result = parts[0]
            else:
                result = torch.cat(parts)
            torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def test_buffers_are_in_the_state_dict_and_the_curves() -> None:
    head, other = build(DenseHead, SpreadFace()), build(DenseHead, SpreadFace())
    train(head)
    other.load_state_dict(head.state_dict())
    assert head.scalars().keys() == {"CosineSpread.std"}
    assert other.scalars()["CosineSpread.std"] == head.scalars()["CosineSpread.std"] > 0


class PerClass(Difficulty):
    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {"per_class": torch.zeros(CLASSES)}


class Norm(Difficulty):
    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {"feature_norm": observation.feature_norm}


@dataclass(frozen=True, kw_only=True)
class Needy(Loss):
    statistic: str

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        return {self.statistic: {}}


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        (
            "PerClass",
            r"PerClass supplies 'per_class' of shape \(23,\); for 9 samples the shape must be \(\)",
        ),
        (
            "Norm",
            "Norm supplies 'feature_norm', which the context already contains; choose",
        ),
        ("Needy", "Needy' is not a subclass of margrave.statistics.Statistic"),
        ("Missing", "has no 'Missing'"),
    ],
)
def test_what_does_not_fit_is_named(statistic: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(DenseHead, Needy(statistic=f"{__name__}:{statistic}"))(*batches()[0])


def test_two_statistics_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("other")
    vars(other)["Difficulty"] = PerClass
    monkeypatch.setitem(sys.modules, "other", other)
    needs = {f"{__name__}:Difficulty": {}, "other:Difficulty": {}}
    with pytest.raises(ValueError, match="two statistics are named 'Difficulty'"):
        create_statistics(needs, StatisticSpec(num_classes=1, embedding_size=1))


def test_an_unknown_name_suggests() -> None:
    spec = StatisticSpec(num_classes=1, embedding_size=1)
    with pytest.raises(ValueError, match="unknown statistic 'feature_norms'; did you mean"):
        create_statistics({"feature_norms": {}}, spec)


def test_a_file_names_no_statistic_by_a_setting() -> None:
    spec = {"kind": f"{__name__}:Needy", "statistic": "pathlib:Path.touch"}
    with (
        names_from_file("config.yaml", trust_code=False, typed=spec["kind"]),
        pytest.raises(ValueError, match=r"config\.yaml names 'pathlib:Path.touch'"),
    ):
        create(spec)


SETTINGS = {
    "data.train.kind": "synthetic",
    "data.train.num_identities": 4,
    "data.image_size": 32,
    "data.cached": "false",
    "backbone.channels": "[8,8,8,8]",
    "backbone.block_counts": "[1,1,1,1]",
    "training.batch_size": 8,
    "training.threads": 1,
    "training.log_steps": 1,
    "training.epochs": 1,
}


def margrave(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_keeps_the_statistic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    loss = "loss_with_statistic:SpreadFace"
    margrave("train", "small", "--loss", loss, "-o", "run", *words)
    two_epochs = ("train", "--resume", "run", "--set", "training.epochs=2")
    with pytest.raises(ValueError, match=f"names '{loss}'"):
        margrave(*two_epochs)
    assert "resuming after 1 epoch" in margrave(*two_epochs, "--trust-code")
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    stds = [line["CosineSpread.std"] for line in lines if line["kind"] == "training"]
    # A step changes it by a hundredth; restarted, it would drop to near 0.
    assert len(stds) >= 4 and stds[0] > 0
    assert all(after >= 0.99 * before for before, after in itertools.pairwise(stds))
    assert stds[-1] > 1.5 * stds[len(stds) // 2 - 1]
