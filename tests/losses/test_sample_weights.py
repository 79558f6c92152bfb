"""Losses that weight samples, and negatives that are left out, against their equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from margrave.heads import ChunkedHead, DenseHead, Head, ShardedHead
from margrave.losses import LOSSES, ArcFace, Composed, Focal, HardMining, create

CLASSES, FEATURES, BATCH = 23, 8, 10


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = 6 * torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    return embeddings, torch.randint(CLASSES, (BATCH,), generator=generator)


def build(kind: object, head: type[Head] = DenseHead, **settings: object) -> Head:
    torch.manual_seed(0)
    return head(kind, CLASSES, FEATURES, **settings).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_equation(gamma: float) -> None:
    plain = build({"kind": "cosface", "scale": 8, "margin": 0.2})(*batch(), reduction="none")
    focal = build({"kind": "focal", "scale": 8, "margin": 0.2, "base": "cosine", "gamma": gamma})
    expected = (1 - (-plain).exp()) ** gamma * plain
    torch.testing.assert_close(focal(*batch(), reduction="none"), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_focal_has_a_gradient_where_nothing_is_wrong(gamma: float, dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1e-7, 1.0, 1e4], dtype=dtype, requires_grad=True)
    Focal(gamma=gamma).modify_cross_entropy(values, lambda: values).sum().backward()
    assert values.grad is not None and torch.isfinite(values.grad).all()


def test_hard_mining_is_the_mean_over_the_hardest() -> None:
    plain = build({"kind": "normface", "scale": 8})(*batch(), reduction="none")
    mining = build({"kind": "hard_mining", "scale": 8, "keep": 0.65})
    kept = plain.sort(descending=True).values[: math.ceil(0.65 * BATCH)]
    torch.testing.assert_close(mining(*batch()), kept.mean())
    assert int((mining(*batch(), reduction="none") == 0).sum()) == BATCH - len(kept)
    everything = build({"kind": "hard_mining", "scale": 8, "keep": 1.0})
    torch.testing.assert_close(everything(*batch()), plain.mean())


def test_hard_mining_keeps_as_many_as_documented_if_losses_tie() -> None:
    for losses, keep in (
        ([2.0, 2.0, 2.0, 2.0], 0.5),
        ([1.0, 2.0, 2.0, 3.0], 0.5),
        ([0.0, 0.0, 0.0, 5.0], 0.75),
    ):
        values = torch.tensor(losses, dtype=torch.float64)
        kept = math.ceil(keep * len(values))
        modified = HardMining(keep=keep).modify_cross_entropy(values, lambda: values)  # noqa: B023
        torch.testing.assert_close(modified.mean(), values.topk(kept).values.mean())
        assert not modified[values < values.topk(kept).values[-1]].any()


def test_hard_mining_hides_no_nan() -> None:
    values = torch.tensor([1.0, math.nan, 2.0])
    modified = HardMining(keep=0.4).modify_cross_entropy(values, lambda: values)
    assert modified[1].isnan()


def test_a_composed_loss_weights_samples_as_its_target() -> None:
    composed = Composed(target_loss=Focal(scale=8), negatives_loss=ArcFace())
    torch.testing.assert_close(build(composed)(*batch()), build(Focal(scale=8))(*batch()))


HEADS: dict[str, tuple[type[Head], dict[str, object]]] = {
    "dense": (DenseHead, {}),
    "blocks of 7": (ChunkedHead, {"block_size": 7}),
    "blocks of 1, none kept": (ChunkedHead, {"block_size": 1, "memory_budget": 0}),
    "sampled at rate 1": (ChunkedHead, {"block_size": 5, "sample_rate": 1.0}),
    "sharded over one": (ShardedHead, {"block_size": 10}),
}


def step(head: Head) -> tuple[Tensor, Tensor, Tensor]:
    embeddings, labels = batch()
    loss = head(embeddings.requires_grad_(), labels, reduction="none")
    (loss * torch.linspace(-0.5, 2, BATCH)).sum().backward()
    assert embeddings.grad is not None and head.weight.grad is not None
    return loss.detach(), embeddings.grad, head.weight.grad.to_dense()


@pytest.mark.parametrize("which", HEADS)
@pytest.mark.parametrize("kind", [kind for kind in LOSSES if create({"kind": kind}).normalized])
def test_ignored_negatives_are_as_if_they_were_no_classes(kind: str, which: str) -> None:
    limit = 0.25
    head_class, settings = HEADS[which]
    spec = {"kind": kind, "scale": 8.0, "ignore_negatives_above": limit}
    head = build(spec, head_class, **settings)
    if kind in ("hard_mining", "kappaface", "elasticface"):
        # What these do depends on the whole batch; their per-sample reference is the dense head.
        torch.testing.assert_close(step(head), step(build(spec)), rtol=1e-10, atol=1e-12)
        return
    loss, *gradients = step(head)
    embeddings, labels = batch()
    with torch.no_grad():
        everything = build({"kind": kind, "scale": 8.0}, DenseHead)
        everything(embeddings, labels)  # the same statistics as after a step
        everything.eval()
        prepared = everything.prepare(embeddings, labels)
        unit = torch.nn.functional.normalize(everything.weight)
        cosines = prepared.unit @ unit.T
        negatives = everything.loss.negatives(cosines, prepared.target_cosine, prepared.context)
        target = everything.loss.modify_target(prepared.target_cosine, prepared.context)
    for row in range(BATCH):
        others = torch.arange(CLASSES) != labels[row]
        kept = negatives[row][others & (cosines[row] <= limit)]
        logits = 8.0 * torch.cat([target[row : row + 1], kept])
        terms, bias = everything.sigmoid_terms, everything.sigmoid_bias
        if terms is None:
            expected = -logits.log_softmax(0)[0]
        else:
            signs = torch.tensor([-1.0] + [1.0] * len(kept))
            weights = torch.tensor(
                [terms.target_weight] + [terms.negatives_weight] * len(kept), dtype=torch.float64
            )
            expected = weights @ (signs * (logits + bias)).exp().log1p()
        expected = everything.loss.modify_cross_entropy(expected[None], lambda: expected[None])[0]  # noqa: B023
        penalty = everything.loss.penalty(prepared.context)
        expected = expected if penalty is None else expected + penalty[row]
        torch.testing.assert_close(loss[row], expected)
    assert bool((cosines > limit).any()) and all(torch.isfinite(each).all() for each in gradients)
    torch.testing.assert_close((loss, *gradients), step(build(spec)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("which", HEADS)
def test_a_sample_without_negatives_has_no_loss(which: str) -> None:
    head_class, settings = HEADS[which]
    spec = {"kind": "arcface", "ignore_negatives_above": -0.999}
    loss, *gradients = step(build(spec, head_class, **settings))
    assert not loss.any() and not any(each.any() for each in gradients)


def test_ignored_negatives_are_not_hard() -> None:
    head = build({"kind": "sv_softmax", "ignore_negatives_above": 0.3})
    assert isinstance(head, DenseHead)
    analysis = head.analyze(*batch())
    assert analysis.hard_negatives.any()
    assert not (analysis.hard_negatives & (analysis.cosines > 0.3)).any()


def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"ignore_negatives_above = -1.0 must be in \(-1, 1\]"):
        ArcFace(ignore_negatives_above=-1.0)
    with pytest.raises(ValueError, match="softmax has no cosines"):
        create({"kind": "softmax", "ignore_negatives_above": 0.4})
    with pytest.raises(ValueError, match="gamma = -1"):
        Focal(gamma=-1)
    with pytest.raises(ValueError, match=r"keep = 0 must be in \(0, 1\]"):
        HardMining(keep=0)
