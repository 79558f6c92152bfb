"""MagFace against its equations, the gradient through the norm included."""

from __future__ import annotations

import pytest
import torch

from margrave.heads import DenseHead
from margrave.losses import Context, create


def test_margin_grows_with_the_norm() -> None:
    norm = torch.tensor([1.0, 10.0, 60.0, 110.0, 500.0], dtype=torch.float64)
    cosine = torch.full_like(norm, 0.3)
    result = create({"kind": "magface"}).target(cosine, Context(feature_norm=norm))
    margin = torch.tensor([0.45, 0.45, 0.625, 0.8, 0.8], dtype=torch.float64)
    torch.testing.assert_close(result, torch.cos(cosine.arccos() + margin))


def test_the_gradient_reaches_the_norm() -> None:
    torch.manual_seed(0)
    head = DenseHead("magface", 7, 5).double()
    embeddings = 10 * torch.randn(4, 5, dtype=torch.float64) + 10
    labels = torch.tensor([0, 3, 6, 2])
    assert torch.autograd.gradcheck(lambda given: head(given, labels), embeddings.requires_grad_())


def test_the_penalty_is_part_of_the_loss() -> None:
    torch.manual_seed(0)
    with_penalty = DenseHead("magface", 7, 5)
    without = DenseHead({"kind": "magface", "penalty_weight": 0.0}, 7, 5)
    without.load_state_dict(with_penalty.state_dict())
    embeddings, labels = 20 * torch.randn(4, 5), torch.arange(4)
    norm = embeddings.norm(dim=1).clamp(10, 110)
    expected = without(embeddings, labels) + 35 * (1 / norm + norm / 110**2).mean()
    torch.testing.assert_close(with_penalty(embeddings, labels), expected)


def test_bounds_in_the_wrong_order() -> None:
    with pytest.raises(ValueError, match=r"highest_norm = 5\.0 must be above lowest_norm"):
        create({"kind": "magface", "highest_norm": 5.0})
