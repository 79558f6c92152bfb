"""Every head gives the dense head's loss, gradients and statistics, for every loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from margrave.heads import ChunkedHead, DenseHead, Head, ShardedHead
from margrave.losses import LOSSES

CLASSES, FEATURES, BATCH = 23, 8, 9
CACHES_ONE_BLOCK = BATCH * 7 * 8 / 2**20
HEADS: dict[str, tuple[type[Head], dict[str, Any]]] = {
    "one block": (ChunkedHead, {}),
    "blocks of 7": (ChunkedHead, {"block_size": 7}),
    "blocks of 7, one kept": (ChunkedHead, {"block_size": 7, "memory_budget": CACHES_ONE_BLOCK}),
    "blocks of 1, none kept": (ChunkedHead, {"block_size": 1, "memory_budget": 0}),
    "sampled at rate 1": (ChunkedHead, {"block_size": 5, "sample_rate": 1.0}),
    "sharded over one": (ShardedHead, {"block_size": 10}),
}
LOSS_SETTINGS = {"kappaface": {"estimator": "online"}}
pytestmark = pytest.mark.parametrize("kind", list(LOSSES))


def build(
    head: type[Head],
    kind: str | dict[str, Any],
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> Head:
    torch.manual_seed(0)
    return head(kind, CLASSES, FEATURES, **settings).to(dtype)


def batches(steps: int = 3, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            6 * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(steps)
    ]


def outcome(head: Head, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Loss, gradients and buffers of one step, the losses weighted unequally."""
    embeddings = embeddings.clone().requires_grad_()
    head.zero_grad()
    loss = head(embeddings, labels, reduction="none")
    (loss * torch.linspace(-0.5, 2, len(labels))).sum().backward()
    result = {"loss": loss.detach(), "embeddings": embeddings.grad}
    for name, parameter in head.named_parameters():
        result[name] = parameter.grad.to_dense()
    buffers = {name: value for name, value in head.named_buffers() if name != "draws"}
    return result | {name: value.clone() for name, value in buffers.items()}


@pytest.mark.parametrize("which", list(HEADS))
def test_equal_to_dense(kind: str, which: str) -> None:
    head_class, settings = HEADS[which]
    dense, head = build(DenseHead, kind), build(head_class, kind, **settings)
    for _ in range(2):
        for batch in batches():
            expected, result = outcome(dense, *batch), outcome(head, *batch)
            assert result.keys() == expected.keys()
            torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)
        dense.end_epoch()
        head.end_epoch()


@pytest.mark.parametrize("which", ["blocks of 7, one kept", "one block", "sampled at rate 1"])
def test_equal_to_dense_with_three_centers_per_class(kind: str, which: str) -> None:
    head_class, settings = HEADS[which]
    if kind == "softmax":
        with pytest.raises(ValueError, match="1 for a loss of inner products"):
            build(head_class, kind, **settings, centers_per_class=3)
        return
    dense = build(DenseHead, kind, centers_per_class=3)
    head = build(head_class, kind, **settings, centers_per_class=3)
    for batch in batches():
        expected, result = outcome(dense, *batch), outcome(head, *batch)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-12)


def test_low_precision_within_twice_the_dense_error(kind: str) -> None:
    truth = build(DenseHead, kind)
    low = {
        name: build(head, kind, torch.bfloat16, **settings)
        for name, (head, settings) in {
            "dense": (DenseHead, {}),
            "chunked": (ChunkedHead, {"block_size": 7, "memory_budget": 0}),
        }.items()
    }
    for head in (truth, *low.values()):
        head.eval()
        head.weight.data = low["dense"].weight.data.to(head.weight.dtype)
    embeddings, labels = batches(1, torch.bfloat16)[0]
    expected = outcome(truth, embeddings.double(), labels)
    result = {name: outcome(head, embeddings, labels) for name, head in low.items()}
    for name in ("loss", "embeddings", "weight"):
        error = {
            which: (values[name].double() - expected[name]).norm()
            for which, values in result.items()
        }
        assert error["chunked"] <= 2 * error["dense"] + 1e-3 * expected[name].norm(), name


def test_gradients_are_exact(kind: str) -> None:
    head = build(ChunkedHead, kind, block_size=7, memory_budget=0).eval()
    embeddings, labels = batches(1)[0]
    length = embeddings.norm(dim=1, keepdim=True)

    def loss_of(embeddings: Tensor, weight: Tensor) -> Tensor:
        # At a fixed norm: AdaFace reads the norm without gradient.
        embeddings = embeddings / embeddings.norm(dim=1, keepdim=True) * length
        return torch.func.functional_call(head, {"weight": weight}, (embeddings, labels))

    weight = head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (embeddings.requires_grad_(), weight), atol=1e-6)


def test_slopes_are_those_of_autograd(kind: str) -> None:
    head = build(DenseHead, kind)
    embeddings, labels = batches(1)[0]
    batch = head.prepare(embeddings, labels)
    cosines = (torch.rand(BATCH, CLASSES, dtype=torch.float64) * 2 - 1).requires_grad_()
    negatives = head.loss.negatives(cosines, batch.target_cosine, batch.context)
    expected = torch.autograd.grad(negatives.sum(), cosines)[0]
    analytic = head.loss.negatives_and_slope(cosines.detach(), batch.target_cosine, batch.context)
    # Without one autograd is asked, as `test_equal_to_dense` does.
    result, slope = analytic or (negatives.detach(), expected)
    torch.testing.assert_close(result, negatives.detach())
    torch.testing.assert_close(torch.ones_like(cosines) if slope is None else slope, expected)


@pytest.mark.parametrize("scale", [1e-30, 0.0, 1e30])
def test_finite_on_extreme_input(kind: str, scale: float) -> None:
    head = build(ChunkedHead, kind, torch.float32, block_size=7)
    embeddings, labels = batches(1, torch.float32)[0]
    for number, value in outcome(head, embeddings * scale, labels).items():
        assert torch.isfinite(value).all(), number
    one = build(ChunkedHead, kind, torch.float32, block_size=1)
    for number, value in outcome(one, head.weight.detach()[labels] * 50, labels).items():
        assert torch.isfinite(value).all(), number


def test_accumulated_gradients_are_the_full_batchs(kind: str) -> None:
    if kind == "hard_mining":
        pytest.skip("mines within each micro-batch")
    head, parts = build(ChunkedHead, kind, block_size=7).eval(), build(ChunkedHead, kind).eval()
    embeddings, labels = batches(1)[0]
    head(embeddings, labels).backward()
    for part in (slice(0, 4), slice(4, None)):
        (parts(embeddings[part], labels[part], reduction="none").sum() / BATCH).backward()
    for first, second in zip(head.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


def finite_step(head: Head, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """A step's loss and gradients, all of which must be finite."""
    embeddings = embeddings.clone().requires_grad_()
    loss = head(embeddings, labels)
    loss.backward()
    grad_weight, grad_embeddings = head.weight.grad, embeddings.grad
    assert grad_weight is not None and grad_embeddings is not None
    grad_weight = grad_weight.to_dense()
    results = {"loss": loss, "embeddings": grad_embeddings, "weight": grad_weight}
    for name, value in results.items():
        assert torch.isfinite(value).all(), name
    return results


DENSE_TOO = HEADS | {
    "dense": (DenseHead, {}),
    "sampled": (ChunkedHead, {"block_size": 5, "sample_rate": 0.5}),
    "bfloat16 products": (ChunkedHead, {"block_size": 7, "products": "bfloat16"}),
}


@pytest.mark.parametrize("which", DENSE_TOO)
def test_rows_of_any_norm_give_finite_gradients(kind: str, which: str) -> None:
    head_type, settings = DENSE_TOO[which]
    head = build(head_type, kind, torch.float32, **settings)
    directions = torch.nn.functional.normalize(head.weight.detach())
    embeddings, labels = batches(1, torch.float32)[0]
    for norms in (*torch.tensor([1e25, 1e-20, 1e-11, 1e15]), torch.logspace(-20, 25, CLASSES)):
        head.weight.data.copy_(directions * norms.reshape(-1, 1))
        finite_step(head, embeddings, labels)
        finite_step(head, directions[labels] * 30, labels)


@pytest.mark.parametrize("which", DENSE_TOO)
def test_huge_embeddings_give_finite_gradients(kind: str, which: str) -> None:
    head_type, settings = DENSE_TOO[which]
    embeddings, labels = batches(1, torch.float32)[0]
    for length in (1e7, 3e10, 1e20, 1e30):
        # A scale that is no power of two rounds each product.
        head = build(head_type, {"kind": kind, "scale": 30.0}, torch.float32, **settings)
        loss = finite_step(head, embeddings * length, labels)["loss"]
        if which not in ("sampled", "bfloat16 products"):
            dense = build(DenseHead, {"kind": kind, "scale": 30.0}, torch.float32)
            expected = finite_step(dense, embeddings * length, labels)["loss"]
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_type", [DenseHead, ChunkedHead])
def test_converged_heads_of_any_precision_have_gradients(
    kind: str, head_type: type[Head], dtype: torch.dtype
) -> None:
    # Where the dtype rounds ε away a clamp at 1 − ε does nothing, and arccosine has no slope at 1.
    specs: list[dict[str, Any]] = [{"kind": kind}]
    settings = LOSSES.get(kind)().settings()
    if "epsilon" in settings:
        specs += [{"kind": kind, "epsilon": 1e-8}, {"kind": kind, "epsilon": 1e-60}]
        specs += [{**spec, "norm_start": "first_batch", "concentration": 0.0} for spec in specs]
    if "beyond_pi" in settings:
        specs.append({"kind": kind, "beyond_pi": "clip"})
    for spec in specs:
        head = build(head_type, spec, torch.float32).to(dtype)
        head.weight.data.copy_(torch.nn.functional.normalize(head.weight.detach().float()))
        for length in (5, -5, 0):
            finite_step(head, head.weight.detach()[:BATCH] * length, torch.arange(BATCH))
            head.end_epoch()
