"""Classes over 2, 3 and 4 uneven gloo ranks: loss, gradients and statistics of one dense head."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from ranks import on_ranks

from margrave.heads import DenseHead, Head, ShardedHead
from margrave.losses import LOSSES

SAMPLES = {2: (2, 7), 3: (4, 1, 4), 4: (2, 3, 1, 3)}
CLASSES, FEATURES, BATCH, STEPS, IMAGES = 23, 8, 9, 3, 40
KAPPAFACE = {"kind": "kappaface"}
LOSS_SPECS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in LOSSES} | {
    "kappaface, momentum encoder": {**KAPPAFACE, "estimator": "momentum_encoder"},
    "kappaface, memory buffer": {**KAPPAFACE, "estimator": "memory_buffer"},
    "curricularface, three centers": {"kind": "curricularface"},
}
HEAD_SETTINGS = {"curricularface, three centers": {"centers_per_class": 3}}


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)

    def embeddings() -> Tensor:
        return 6 * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)

    # An image keeps its class.
    classes = torch.randint(CLASSES, (IMAGES,), generator=generator)
    result = []
    for _ in range(STEPS):
        images = torch.randperm(IMAGES, generator=generator)[:BATCH]
        result.append(
            {
                "embeddings": embeddings(),
                "labels": classes[images],
                "sample_indices": images,
                "momentum_embeddings": embeddings(),
            }
        )
    return result


def train(head: Head, part: slice) -> dict[str, Tensor]:
    """Two epochs; the last step's loss and gradients, and every statistic."""
    size = head.world.size
    result: dict[str, Tensor] = {}
    for _ in range(2):
        for batch in batches():
            given = {name: value[part] for name, value in batch.items()}
            given["embeddings"] = given["embeddings"].clone().requires_grad_()
            head.zero_grad()
            loss = head(**given, reduction="none")
            # Averaged over ranks, as data-parallel training does.
            (loss * torch.linspace(0.1, 1, BATCH)[part]).sum().mul(size).backward()
            result = {"loss": loss.detach(), "embeddings": given["embeddings"].grad / size}
        head.end_epoch()
    result |= {name: parameter.grad for name, parameter in head.named_parameters()}
    return result | dict(head.named_buffers())


def train_rank(rank: int, samples: tuple[int, ...], settings: dict) -> dict[str, dict[str, Tensor]]:
    part = slice(sum(samples[:rank]), sum(samples[: rank + 1]))
    result = {}
    for name, spec in LOSS_SPECS.items():
        torch.manual_seed(0)
        own = settings | HEAD_SETTINGS.get(name, {})
        head = ShardedHead(spec, CLASSES, FEATURES, num_samples=IMAGES, **own).double()
        result[name] = train(head, part)
        batch = {name: value[part] for name, value in batches()[0].items()}
        result[name]["mean"] = head.eval()(**batch).detach()[None] / head.world.size
    return result


@pytest.fixture(
    scope="module",
    params=[(2, {"block_size": 5}), (3, {"block_size": 3, "memory_budget": 0})],
    ids=["2 ranks", "3 ranks"],
)
def from_ranks(request: pytest.FixtureRequest) -> list[dict[str, dict[str, Tensor]]]:
    size, settings = request.param
    return on_ranks(size, train_rank, SAMPLES[size], settings)


# Subtests, because ranks are started for all losses at once.
def test_equal_to_one_dense_head(from_ranks: list, subtests: pytest.Subtests) -> None:
    for name in LOSS_SPECS:
        with subtests.test(name):
            check_loss(name, from_ranks)


def check_loss(name: str, from_ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    torch.manual_seed(0)
    own = HEAD_SETTINGS.get(name, {})
    dense = DenseHead(LOSS_SPECS[name], CLASSES, FEATURES, num_samples=IMAGES, **own).double()
    expected = train(dense, slice(None))
    expected["mean"] = dense.eval()(**batches()[0]).detach()[None]
    by_owner = ("loss", "embeddings", "weight", "bias", "statistics.class_concentration.")
    for key, value in expected.items():
        parts = [rank[name][key] for rank in from_ranks]
        if key == "mean":
            result = torch.stack(parts).sum(dim=0)
        elif key.startswith(by_owner):
            result = torch.cat(parts)
        else:
            result = parts[0]
            assert all(torch.equal(part, result) for part in parts)
        torch.testing.assert_close(result, value, rtol=1e-10, atol=1e-12, msg=f"{key} differs")


def few_classes(rank: int) -> Tensor:
    torch.manual_seed(0)
    head = ShardedHead("kappaface", 2, 4).double()
    assert len(head.weight) == (1, 1, 0)[rank]
    loss = head(torch.ones(1, 4, dtype=torch.float64), torch.tensor([rank % 2]))
    loss.backward()
    head.end_epoch()
    return loss.detach()


def test_a_rank_may_own_no_class() -> None:
    torch.manual_seed(0)
    dense = DenseHead("kappaface", 2, 4).double()
    expected = dense(torch.ones(3, 4, dtype=torch.float64), torch.tensor([0, 1, 0]))
    losses = torch.stack(on_ranks(3, few_classes))
    torch.testing.assert_close(losses.mean(), expected.detach(), rtol=1e-10, atol=1e-12)
