"""Losses against their equations, where no official file speaks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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
    with pytest.raises(ValueError, match=r"is not a margrave\.losses\.Loss"):
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
