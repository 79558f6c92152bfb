"""AdaCos's scale against its equations, with every head, and where they have no answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from margrave.heads import ChunkedHead, DenseHead

CLASSES, FEATURES, BATCH = 21, 6, 8


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return [
        (torch.randn(BATCH, FEATURES, dtype=torch.float64), torch.randint(CLASSES, (BATCH,)))
        for _ in range(3)
    ]


def equation(cosines: torch.Tensor, labels: torch.Tensor, scale: float) -> float:
    is_target = functional.one_hot(labels, CLASSES).bool()
    mean_sum = (scale * cosines).exp().masked_fill(is_target, 0).sum(dim=1).mean()
    median = cosines[is_target].acos().median()
    return float(mean_sum.log() / median.clamp(max=math.pi / 4).cos())


@pytest.mark.parametrize(
    "head",
    [
        lambda: DenseHead("adacos", CLASSES, FEATURES),
        lambda: ChunkedHead("adacos", CLASSES, FEATURES, block_size=5),
        lambda: ChunkedHead("adacos", CLASSES, FEATURES, sample_rate=1.0),
    ],
    ids=["dense", "chunked", "sampled at rate 1"],
)
def test_the_scale_follows_the_equation(head) -> None:
    torch.manual_seed(0)
    head = head().double()
    head.weight.data.mul_(1e-9)  # Its length does not matter.
    scale = math.sqrt(2) * math.log(CLASSES - 1)
    assert head.statistics["adaptive_scale"].scale.item() == pytest.approx(scale, rel=1e-7)
    scale = head.statistics["adaptive_scale"].scale.item()
    for embeddings, labels in batches():
        cosines = functional.normalize(embeddings) @ functional.normalize(head.weight.detach()).T
        scale = equation(cosines, labels, scale)
        loss = head(embeddings, labels)
        assert head.scalars()["adaptive_scale.scale"].item() == pytest.approx(scale, rel=1e-10)
        torch.testing.assert_close(loss, functional.cross_entropy(scale * cosines, labels))


def test_a_sampled_head_sums_over_its_sampled_classes() -> None:
    head = ChunkedHead("adacos", 1000, FEATURES, sample_rate=0.1).double()
    embeddings, labels = batches()[0]
    head(embeddings, labels)
    # A tenth of the terms: the logarithm is smaller by about log 10.
    fewer = head.statistics["adaptive_scale"].scale.item()
    head = ChunkedHead("adacos", 1000, FEATURES).double()
    head(embeddings, labels)
    assert head.statistics["adaptive_scale"].scale.item() - fewer > math.log(5)


def test_a_step_without_an_answer_leaves_the_scale() -> None:
    head = DenseHead("adacos", CLASSES, FEATURES).double()
    before = head.statistics["adaptive_scale"].scale.clone()
    # Every negative points away: the sum is below 1, and its logarithm below 0.
    direction = torch.zeros(FEATURES, dtype=torch.float64)
    direction[0] = 1
    head.weight.data.copy_(-direction)
    head.weight.data[0] = direction
    head(direction[None].expand(2, -1), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(head.statistics["adaptive_scale"].scale, before)


def test_two_classes_are_too_few() -> None:
    with pytest.raises(ValueError, match="num_classes = 2: the adaptive scale needs at least 3"):
        DenseHead("adacos", 2, FEATURES)
