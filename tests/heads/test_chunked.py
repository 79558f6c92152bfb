from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from margrave.distributed import World
from margrave.heads import ChunkedHead, DenseHead, ShardedHead
from margrave.heads.cost import Workload
from margrave.heads.embeddings import inverse_length, unit_and_norm
from margrave.heads.fused_block import FusedBlock
from margrave.losses import Context, Loss
from margrave.losses import create as create_loss


@dataclass(frozen=True, kw_only=True)
class NormAware(Loss):
    """A custom loss without a slope, whose negatives read the norm with gradient."""

    scale: float = 8.0

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        norm = context["feature_norm"]
        return cosines.sin() * (1 + 0.1 * norm / (1 + norm))[:, None]


def steps(head: DenseHead | ChunkedHead) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    embeddings.requires_grad_()
    loss = head(embeddings, torch.tensor([0, 3, 3, 9, 10, 0]))
    loss.backward()
    assert embeddings.grad is not None and head.weight.grad is not None
    return loss.detach(), embeddings.grad, head.weight.grad


def built(kind: type, loss: Loss | str, **settings: object) -> DenseHead | ChunkedHead:
    torch.manual_seed(0)
    return kind(loss, 11, 4, **settings).double()


@pytest.mark.parametrize("budget", [0.0, 256.0])
def test_a_loss_without_slopes_is_left_to_autograd(budget: float) -> None:
    expected = steps(built(DenseHead, NormAware()))
    result = steps(built(ChunkedHead, NormAware(), block_size=4, memory_budget=budget))
    for first, second in zip(expected, result, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("loss", "centers"),
    [("curricularface", 1), ("curricularface", 3), ("adaface", 1), ("sphereface2", 2)],
)
def test_the_compiled_block_is_the_same(loss: str, centers: int) -> None:
    expected = steps(built(DenseHead, loss, centers_per_class=centers))
    settings = {"centers_per_class": centers, "block_size": 4, "compiled": True}
    result = steps(built(ChunkedHead, loss, **settings))
    for first, second in zip(expected, result, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-10, atol=1e-12)


COMPARE = """
import torch
from margrave.heads import ChunkedHead, DenseHead
torch.manual_seed(0)
heads = [DenseHead("adaface", 50, 12), ChunkedHead("adaface", 50, 12, block_size=20, compiled=True)]
heads[1].load_state_dict(heads[0].state_dict())
embeddings = 5 * torch.randn(6, 12)
for head in heads:
    head(embeddings, torch.arange(6)).backward()
gradients = [head.weight.grad for head in heads]
print((gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max())
"""


@pytest.mark.slow
def test_code_kept_for_other_vectors_is_not_taken(tmp_path: Path) -> None:
    """As where machines share a folder of compiled code: torch 2.13 alone corrupts memory."""
    for capability in ("avx2", ""):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        command = [sys.executable, "-c", COMPARE]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert float(result.stdout.split("(")[-1].strip(")\n")) < 1e-5


@dataclass(frozen=True, kw_only=True)
class Uncompilable(Loss):
    """A loss that looks at its numbers, which no compiler can follow."""

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        assert float(cosines.amax()) < 2
        return cosines

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, None]:
        return self.negatives(cosines, target_cosine, context), None


def test_a_loss_that_cannot_be_compiled_runs_all_the_same() -> None:
    expected = steps(built(DenseHead, "normface"))
    with pytest.warns(UserWarning, match="cannot be compiled here"):
        result = steps(built(ChunkedHead, Uncompilable(), block_size=4, compiled=True))
    for first, second in zip(expected, result, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-10, atol=1e-12)


def test_a_sum_that_would_overflow_is_taken_again() -> None:
    head = built(ChunkedHead, "normface", block_size=1, compiled=True).float()
    head.loss = type(head.loss)(scale=4000.0)
    with torch.no_grad():
        head.weight[0], head.weight[1:] = 1.0, -1.0
        head.weight[5] = 1.0
    loss = head(torch.ones(1, 4), torch.tensor([0]))
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


def test_backward_twice_and_copies() -> None:
    head = copy.deepcopy(built(ChunkedHead, "arcface", block_size=4))
    loss = head(torch.randn(3, 4, dtype=torch.float64), torch.arange(3))
    first = torch.autograd.grad(loss, head.weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, head.weight)[0])


def test_second_derivatives_are_refused() -> None:
    head = built(ChunkedHead, "arcface", block_size=4)
    embeddings = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    loss = head(embeddings, torch.arange(3))
    (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.square().sum().backward()


def test_the_buffer_survives_an_evaluation() -> None:
    head = built(ChunkedHead, "arcface", block_size=4)
    embeddings = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    head(embeddings, torch.arange(3)).backward()
    buffer = head.cosine_cache.acquire(1, embeddings)
    head.cosine_cache.release(buffer)
    with torch.no_grad():
        head(embeddings, torch.arange(3))
    assert head.cosine_cache.acquire(1, embeddings) is buffer


@pytest.mark.parametrize("how", ["in place", "assigned", "copied"])
def test_draws_go_on_from_what_the_buffer_says(how: str) -> None:
    head = ChunkedHead("arcface", 50, 4, sample_rate=0.3)
    given = torch.randn(3, 4), torch.arange(3)
    head(*given)
    state = head.state_dict() | {"draws": torch.tensor(7)}
    if how == "copied":
        head = copy.deepcopy(head)
    head.load_state_dict(state, assign=how == "assigned")
    head(*given)
    assert (head._draw_count, int(head.draws)) == (8, 8)


def test_nothing_is_kept_without_gradient() -> None:
    head = built(ChunkedHead, "adaface")
    with torch.no_grad():
        assert not head(torch.randn(3, 4), torch.arange(3)).requires_grad


def test_a_rank_without_classes_has_no_cosines_to_recompute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("margrave.heads.contract.current_world", lambda: World(2, 3))
    head = ShardedHead("arcface", num_classes=2, embedding_size=4)
    assert not head.classes
    cost = head.cost(Workload(samples=6, device="cpu"))
    assert cost.local_centers == 0 and cost.recomputed_fraction == 0


def test_nan_is_noticed() -> None:
    head = built(ChunkedHead, "arcface", block_size=4)
    assert head(torch.full((2, 4), float("nan")), torch.arange(2)).isnan()


def test_lengths_neither_overflow_nor_vanish() -> None:
    rows = torch.tensor([[3e30, 4e30], [0.0, 0.0], [3e-10, 4e-10], [float("nan"), 1.0]])
    expected = torch.tensor([2e-31, 0.0, 2e9, float("nan")])
    torch.testing.assert_close(inverse_length(rows), expected, equal_nan=True)
    torch.testing.assert_close(1 / unit_and_norm(rows[:1] / 1e5)[1], inverse_length(rows[:1] / 1e5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_budget": -1}, "memory_budget = -1"),
        ({"block_size": 0}, "block_size = 0 must be at least 1"),
        ({"sample_rate": 0.0}, r"sample_rate = 0.0 must be in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkedHead("arcface", 11, 4, **settings)


@pytest.mark.parametrize("columns", [1, 1023, 1024, 3000])
def test_the_maximum_taking_sum_cannot_overflow(columns: int) -> None:
    """What GPUs run, here as it is written."""
    torch.manual_seed(0)
    block = FusedBlock(create_loss({"kind": "normface", "scale": 4000.0}), subtract_max=True)
    products = torch.rand(5, columns, dtype=torch.float64) * 2 - 1
    factor, total = products.new_ones(columns), products.new_full((5,), -torch.inf)
    column = torch.tensor([[0], [columns - 1], [columns], [-1], [-7]], dtype=torch.int32)
    result = block._forward(products.float(), factor, column, total, Context(), total)
    logits = 4000 * products.float().double()
    for row, position in enumerate(column[:, 0].tolist()):
        if 0 <= position < columns:
            logits[row, position] = -torch.inf
    torch.testing.assert_close(result, logits.logsumexp(dim=1))


def test_compiled_inner_products_may_be_huge() -> None:
    torch.manual_seed(0)
    loss = {"kind": "softmax", "scale": 30.0}
    head = ChunkedHead(loss, 130, 8, block_size=64, compiled=True)
    dense = DenseHead(loss, 130, 8)
    dense.load_state_dict(head.state_dict())
    for length in (1.0, 1e7, 3e10, 1e30):
        embeddings = (torch.randn(16, 8) * length).requires_grad_()
        value = head(embeddings, torch.arange(16))
        value.backward()
        assert embeddings.grad is not None and head.weight.grad is not None
        assert torch.isfinite(embeddings.grad).all() and torch.isfinite(head.weight.grad).all()
        torch.testing.assert_close(value, dense(embeddings, torch.arange(16)), rtol=1e-5, atol=1e-5)
