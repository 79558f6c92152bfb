"""Losses against their equations, where no official file speaks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from margrave.heads import DenseHead
from margrave.losses import Context, compose, create

COSINES = torch.linspace(-1, 1, 401, dtype=torch.float64)
UNIT = st.floats(-1, 1)


def target(spec: dict, cosine: torch.Tensor = COSINES, **context: torch.Tensor) -> torch.Tensor:
    return create(spec).target(cosine, Context(**context))


def test_sphereface_is_the_annealed_multiple_angle() -> None:
    iteration = torch.tensor(500.0, dtype=torch.float64)
    plain = max(5.0, 1000 * (1 + 1e-4 * 500) ** -2)
    angle = COSINES.arccos()
    section = (4 * angle / math.pi).floor().clamp_max(3)
    folded = (-1) ** section * torch.cos(4 * angle) - 2 * section
    expected = (plain * COSINES + folded) / (1 + plain)
    result = target({"kind": "sphereface"}, iteration=iteration)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("margin", [1, 2, 3, 4, 5])
def test_sphereface_falls_with_the_angle(margin: int) -> None:
    spec = {"kind": "sphereface", "margin": margin, "plain_weight_minimum": 0.0}
    result = target(spec, iteration=torch.tensor(1e9, dtype=torch.float64))
    assert (result.diff() > -1e-9).all()
    assert result[0] == pytest.approx(1 - 2 * margin)


def test_combined_keeps_all_three_margins() -> None:
    spec = {"kind": "combined", "angle_multiplier": 0.9, "angle_margin": 0.4, "cosine_margin": 0.15}
    expected = torch.cos(0.9 * COSINES.arccos() + 0.4) - 0.15
    torch.testing.assert_close(target(spec)[1:-1], expected[1:-1])


@pytest.mark.parametrize("rule", ["monotone", "clip"])
def test_arcface_falls_with_the_angle_beyond_pi(rule: str) -> None:
    result = target({"kind": "arcface", "margin": 0.5, "beyond_pi": rule})
    assert (result.diff() >= -1e-12).all()


def test_arcface_without_a_guard_rises_again() -> None:
    assert (target({"kind": "arcface", "beyond_pi": "none"}).diff() < 0).any()


def test_mv_adaptive_is_sv_with_one_more() -> None:
    cosines = torch.rand(4, 9, dtype=torch.float64) * 2 - 1
    own = torch.rand(4, dtype=torch.float64)
    mv = create({"kind": "mv_softmax", "hard_weight": 0.3, "margin": 0.2})
    sv = create({"kind": "sv_softmax", "hard_weight": 1.3, "margin": 0.2})
    torch.testing.assert_close(
        mv.negatives(cosines, own, Context()), sv.negatives(cosines, own, Context())
    )


def test_sv_without_a_base_is_softmax_as_first_written() -> None:
    """Factor e^{s(t−1)(cosθ_j+1)} where cosθ_j > cosθ_y."""
    loss = create({"kind": "sv_softmax", "base": "none", "hard_weight": 1.2, "scale": 10.0})
    cosines = torch.tensor([[0.5, 0.1]], dtype=torch.float64)
    result = loss.negatives(cosines, torch.tensor([0.3], dtype=torch.float64), Context())
    factor = torch.exp(10 * (result - cosines))
    expected = torch.tensor([[math.exp(10 * 0.2 * 1.5), 1.0]], dtype=torch.float64)
    torch.testing.assert_close(factor, expected)


@given(quality=UNIT, cosine=st.floats(-0.99, 0.99))
def test_adaface_moves_between_its_three_forms(quality: float, cosine: float) -> None:
    loss = create({"kind": "adaface", "concentration": 1.0, "epsilon": 1e-9})
    norm = torch.tensor([10.0 + quality], dtype=torch.float64)
    one, ten = torch.ones((), dtype=torch.float64), torch.tensor(10.0, dtype=torch.float64)
    context = Context(feature_norm=norm, feature_norm_mean=ten, feature_norm_std=one)
    angle = min(max(math.acos(cosine) - 0.4 * quality, 0.0), math.pi)
    expected = math.cos(angle) - 0.4 - 0.4 * quality
    result = loss.target(torch.tensor([cosine], dtype=torch.float64), context)
    assert result.item() == pytest.approx(expected, abs=1e-6)


def test_compose_takes_each_half_from_its_own_loss() -> None:
    target_loss = create({"kind": "cosface", "margin": 0.2, "scale": 20.0})
    negatives_loss = create({"kind": "mv_softmax", "weighting": "fixed"})
    loss = compose(target=target_loss, negatives=negatives_loss)
    cosines = torch.rand(3, 5, dtype=torch.float64)
    own = torch.rand(3, dtype=torch.float64)
    assert loss.scale == 20.0
    assert torch.equal(loss.target(own, Context()), own - 0.2)
    expected = negatives_loss.negatives(cosines, own, Context())
    assert torch.equal(loss.negatives(cosines, own, Context()), expected)


def test_compose_refuses_contradicting_statistics() -> None:
    slow = create({"kind": "curricularface"})
    fast = create({"kind": "curricularface", "momentum": 0.5})
    with pytest.raises(ValueError, match="use the statistic 'target_cosine'"):
        _ = compose(target=slow, negatives=fast).needs


def test_compose_refuses_softmax() -> None:
    with pytest.raises(ValueError, match="not softmax"):
        compose(target=create({"kind": "softmax"}), negatives=create({"kind": "arcface"}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "arcface", "margin": 4.0}, r"ArcFace.margin = 4.0 must be in \[0, π\)"),
        ({"kind": "sv_softmax", "hard_weight": 0.5}, "hard_weight = 0.5 must be at least 1"),
        ({"kind": "adaface", "norm_update_weight": 0.0}, "norm_update_weight = 0.0 must be in"),
        ({"kind": "sphereface", "margin": 7}, "an integer from 1 to 5"),
        ({"kind": "arcfase"}, "unknown loss 'arcfase'; did you mean 'arcface'"),
        ({"kind": "kappaface", "estimator": "offline"}, "estimator = 'offline'"),
        ({}, "loss needs a 'kind'"),
    ],
)
def test_wrong_hyperparameters_are_named(spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(spec)


def test_a_loss_of_ones_own_by_import_path() -> None:
    assert create({"kind": "margrave.losses.cosface:CosFace", "margin": 0.1}).margin == 0.1
    with pytest.raises(ValueError, match="has no 'CosFase'; did you mean 'CosFace'"):
        create({"kind": "margrave.losses.cosface:CosFase"})
    with pytest.raises(ValueError, match="cannot import 'nowhere'"):
        create({"kind": "nowhere:Loss"})
    with pytest.raises(ValueError, match=r"is not a subclass of margrave\.losses\.Loss"):
        create({"kind": "builtins:float"})


def test_sphereface_r_multiplies_the_targets_angle_up_to_pi() -> None:
    angles = COSINES.arccos()
    result = target({"kind": "sphereface_r", "margin": 1.4})
    torch.testing.assert_close(result, torch.cos((1.4 * angles).clamp(max=math.pi)))
    loss = create({"kind": "sphereface_r", "margin": 1.4, "side": "negatives"})
    negatives = loss.negatives(COSINES[None], COSINES[:1], Context())
    torch.testing.assert_close(negatives[0], torch.cos(angles / 1.4))
    torch.testing.assert_close(loss.target(COSINES, Context()), COSINES)


@pytest.mark.parametrize("base", ["angular", "cosine"])
def test_elasticface_draws_around_its_base(base: str) -> None:
    noise = torch.linspace(-2, 2, len(COSINES), dtype=torch.float64)
    spec = {"kind": "elasticface", "base": base, "margin": 0.4, "margin_std": 0.1}
    result = target(spec, margin_noise=noise)
    margins = 0.4 + 0.1 * noise
    if base == "cosine":
        torch.testing.assert_close(result, COSINES - margins)
    else:
        each = [
            target({"kind": "arcface", "margin": float(margin)}, cosine[None])
            for margin, cosine in zip(margins, COSINES, strict=True)
        ]
        torch.testing.assert_close(result, torch.cat(each))


def binary_cross_entropy(
    cosines: torch.Tensor, labels: torch.Tensor, own: torch.Tensor, other: torch.Tensor,
    weights: tuple[float, float],
) -> torch.Tensor:  # fmt: skip
    """A weighted binary cross entropy over all classes, summed over classes, by torch."""
    is_target = torch.nn.functional.one_hot(labels, cosines.shape[1]).double()
    return torch.nn.functional.binary_cross_entropy_with_logits(
        torch.where(is_target == 1, own, other),
        is_target,
        weight=torch.where(is_target == 1, *weights),
        reduction="none",
    ).sum(dim=1)


@pytest.mark.parametrize("kind", ["uniface", "sphereface2"])
@pytest.mark.parametrize("classes", [2, 11])
def test_a_sigmoid_per_class_is_a_binary_cross_entropy(kind: str, classes: int) -> None:
    torch.manual_seed(0)
    head = DenseHead(kind, classes, 6).double()
    labels = torch.randint(classes, (5,))
    embeddings = torch.randn(5, 6, dtype=torch.float64)
    cosines = torch.nn.functional.normalize(embeddings) @ (
        torch.nn.functional.normalize(head.weight.detach()).T
    )
    if kind == "uniface":
        threshold = math.log(10 * classes)
        own, other = 64 * (cosines - 0.4) - threshold, 64 * cosines - threshold
        weights = 1.0, 1.0
    else:
        similarity = 2 * ((cosines + 1) / 2) ** 3 - 1
        bias = head.sigmoid_bias.detach()
        own, other = 40 * (similarity - 0.4) + bias, 40 * (similarity + 0.4) + bias
        weights = 50 / 40 * 0.7, 50 / 40 * 0.3
    expected = binary_cross_entropy(cosines, labels, own, other, weights)
    torch.testing.assert_close(head(embeddings, labels, reduction="none"), expected)


@pytest.mark.parametrize("classes", [2, 1000, 10**6])
def test_sphereface2_starts_with_targets_and_negatives_in_balance(classes: int) -> None:
    loss = create({"kind": "sphereface2"})
    terms, zero = loss.sigmoid_terms(classes), torch.zeros(1, dtype=torch.float64)
    own = loss.scale * loss.target(zero, Context()) + terms.initial_bias
    other = loss.scale * loss.negatives(zero[None], zero, Context())[0] + terms.initial_bias
    pull = terms.target_weight * torch.sigmoid(-own)
    push = terms.negatives_weight * (classes - 1) * torch.sigmoid(other)
    torch.testing.assert_close(pull, push)


def test_straight_through_sphereface2_has_the_authors_gradient() -> None:
    loss = create({"kind": "sphereface2", "straight_through": True})
    cosines = COSINES.clone().requires_grad_()
    negatives = loss.negatives(cosines[None], COSINES[:1], Context())
    assert torch.autograd.grad(negatives.sum(), cosines)[0].eq(1).all()


def test_composed_losses_are_added_up_as_their_target() -> None:
    unified = create({"kind": "uniface"})
    composed = compose(target=unified, negatives=create({"kind": "curricularface"}))
    assert composed.sigmoid_terms(7) == unified.sigmoid_terms(7)
    head = DenseHead(composed, 7, 4).double()
    head(torch.randn(3, 4, dtype=torch.float64), torch.arange(3)).backward()
    assert head.sigmoid_bias.grad.item() != 0


def test_several_centers_give_the_nearest_ones_cosine() -> None:
    torch.manual_seed(0)
    head = DenseHead({"kind": "arcface", "margin": 0.3}, 7, 5, centers_per_class=3).double()
    embeddings = torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 6, 6, 2])
    units = torch.nn.functional.normalize(head.weight.detach(), dim=2)
    cosines = torch.einsum("bd,ckd->bck", torch.nn.functional.normalize(embeddings), units)
    nearest = cosines.amax(dim=2)
    angles = nearest.gather(1, labels[:, None]).arccos() + 0.3
    logits = 64 * nearest.scatter(1, labels[:, None], angles.cos())
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(head(embeddings, labels), expected)
    head(embeddings, labels).backward()
    # The other centers of a class get nothing from a sample.
    chosen = torch.zeros(7, 3).index_put(
        (torch.arange(7).expand(4, -1), cosines.argmax(2)), torch.tensor(1.0)
    )
    assert torch.equal(head.weight.grad.abs().amax(dim=2) > 0, chosen > 0)
