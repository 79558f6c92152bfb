"""Error versus discard."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.evaluation import discard_curve


def test_rates_are_those_of_the_pairs_that_are_left() -> None:
    generator = np.random.default_rng(0)
    genuine, quality = generator.normal(size=(2, 400))
    curve = discard_curve(genuine, quality)
    order = np.argsort(quality)
    for number in (0, 7, 80):
        left = genuine[order[number:]]
        assert curve.fnmr[number] == (left <= curve.threshold).mean()
        assert curve.discarded[number] == number / 400
    assert curve.fnmr[0] == curve.random_area == 0.05
    assert curve.area == pytest.approx(np.mean(curve.fnmr))


def test_the_best_quality_reaches_the_ideal_and_the_worst_does_not_help() -> None:
    genuine = np.linspace(0, 1, 200)
    best, worst = discard_curve(genuine, genuine), discard_curve(genuine, -genuine)
    assert best.fnmr == best.ideal
    assert best.ideal[10] == 0
    assert worst.area > worst.random_area > best.area == best.ideal_area


@pytest.mark.parametrize(
    ("genuine", "quality", "message"),
    [
        (np.zeros(100), np.zeros(99), "both must be one-dimensional"),
        (np.zeros(100), np.full(100, np.nan), "not finite"),
        (np.zeros(10), np.zeros(10), "at least one of the 10 genuine pairs"),
    ],
)
def test_what_gives_no_curve_is_refused(
    genuine: np.ndarray, quality: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        discard_curve(genuine, quality)
