"""Log-likelihood ratios: known answers, and what they cost."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.evaluation import cllr, cllr_min, fit_calibration


def test_two_normal_distributions_have_the_ratio_that_is_known() -> None:
    generator = np.random.default_rng(0)
    # Of N(0.6, 0.1) and N(0.1, 0.1) the ratio's logarithm is 50·(s − 0.35).
    genuine, impostors = generator.normal(0.6, 0.1, 40_000), generator.normal(0.1, 0.1, 60_000)
    slope, offset = fit_calibration(genuine, impostors)
    assert slope == pytest.approx(50, rel=0.1)
    assert -offset / slope == pytest.approx(0.35, abs=0.01)


def test_the_gradient_is_zero_at_the_fit() -> None:
    generator = np.random.default_rng(1)
    genuine, impostors = generator.normal(0.4, 0.2, 300), generator.normal(0.1, 0.1, 500)
    slope, offset = fit_calibration(genuine, impostors)

    def cost(a: float, b: float) -> float:
        return float(
            np.logaddexp(0, -(a * genuine + b)).mean() + np.logaddexp(0, a * impostors + b).mean()
        )

    best = cost(slope, offset)
    for step in ((0.1, 0), (-0.1, 0), (0, 0.02), (0, -0.02)):
        assert cost(slope + step[0], offset + step[1]) > best


def test_scores_apart_have_a_finite_slope() -> None:
    slope, offset = fit_calibration(np.array([0.8, 0.9]), np.array([0.0, 0.1, -0.1]))
    assert np.isfinite([slope, offset]).all() and slope > 0


@pytest.mark.parametrize(
    ("genuine", "impostors", "message"),
    [([], [0.1], "0 genuine"), ([0.1], [], "0 impostor"), ([0.1, 0.2], [0.8, 0.9], "not higher")],
)
def test_what_cannot_be_calibrated_is_refused(
    genuine: list[float], impostors: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_calibration(np.array(genuine), np.array(impostors))


def test_costs_have_their_known_values() -> None:
    # By the equation: LR 3 and 1 for genuine pairs, 1/3 for an impostor pair.
    ratios = np.log([3.0, 1.0]), np.log([1 / 3])
    expected = ((np.log2(4 / 3) + 1) / 2 + np.log2(4 / 3)) / 2
    assert cllr(*ratios) == pytest.approx(expected)
    assert cllr(np.array([800.0]), np.array([-800.0])) == pytest.approx(0, abs=1e-12)
    assert cllr_min(np.array([0.3, 0.3]), np.array([0.3])) == pytest.approx(1)


def test_no_rising_function_costs_less_than_the_least() -> None:
    generator = np.random.default_rng(2)
    genuine, impostors = generator.normal(0.5, 0.2, 200), generator.normal(0.1, 0.2, 400)
    least = cllr_min(genuine, impostors)
    slope, offset = fit_calibration(genuine, impostors)
    assert least <= cllr(slope * genuine + offset, slope * impostors + offset) < 1
    assert cllr_min(np.exp(genuine), np.exp(impostors)) == pytest.approx(least)
