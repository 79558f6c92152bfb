"""Trainings compared over seeds and identities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from margrave.evaluation import compare_seeds
from margrave.evaluation.pair_bootstrap import Replicates
from margrave.evaluation.seed_comparison import _mean_over_seeds

PEOPLE, SEEDS = 60, 5


def pairs_of_people(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    own = np.arange(PEOPLE).repeat(4)
    other = (own + generator.integers(1, PEOPLE, len(own))) % PEOPLE
    pairs = np.concatenate([np.stack([own, own], 1), np.stack([own, other], 1)])
    pairs = generator.permutation(pairs)
    return pairs, pairs[:, 0] == pairs[:, 1]


def runs(
    generator: np.random.Generator, pairs: np.ndarray, same: np.ndarray, gains: dict[str, float]
) -> dict[str, np.ndarray]:
    """(S, P) distances of each training; its gain separates the two kinds of pairs."""
    people = generator.standard_normal((2, PEOPLE))
    difficulty = np.where(same, people[0][pairs[:, 0]], people[1][pairs].sum(1) / 2**0.5)
    difficulty = difficulty + generator.standard_normal(len(pairs))
    result = {}
    for name, gain in gains.items():
        rows = []
        for _ in range(SEEDS):
            own = 0.4 * generator.standard_normal(len(pairs))
            separation = 1.4 + gain + 0.1 * generator.standard_normal()
            rows.append(2 - 0.35 * (0.6 * difficulty + own + separation * (2 * same - 1)))
        result[name] = np.stack(rows).clip(0, 4)
    return result


def test_equal_losses_have_no_winner_and_unequal_ones_do() -> None:
    winners, planted = 0, 0
    for number in range(40):
        generator = np.random.default_rng(number)
        pairs, same = pairs_of_people(generator)
        equal = runs(generator, pairs, same, {"one": 0.0, "two": 0.0})
        winners += compare_seeds(equal, same, 10, pairs, resamples=60).winner is not None
        unequal = runs(generator, pairs, same, {"better": 1.0, "worse": 0.0})
        planted += compare_seeds(unequal, same, 10, pairs, resamples=60).winner == "better"
    # Of 40 at 5 %, 7 or more happen once in 300 times.
    assert winners <= 6
    assert planted >= 36


def test_one_training_under_two_names_is_no_difference() -> None:
    generator = np.random.default_rng(0)
    pairs, same = pairs_of_people(generator)
    one = runs(generator, pairs, same, {"one": 0.0})["one"]
    compared = compare_seeds({"a": one, "b": one.copy()}, same, 10, pairs, resamples=20)
    assert compared.winner is None
    (difference,) = compared.differences
    assert difference.mean.value == 0 and difference.p_value == 1
    assert compared.not_worse_than("a") == ["b"]


def test_the_variance_is_that_of_two_way_clustering() -> None:
    generator = np.random.default_rng(1)
    # Effects of seeds, of identities, and of both, on a mean over identities.
    of_seeds, both = generator.standard_normal((SEEDS, 1)), generator.standard_normal((SEEDS, 400))
    values = of_seeds + 2 * generator.standard_normal(400) + both
    draws = generator.multinomial(400, np.full(400, 1 / 400), size=2000) / 400
    seeds = [Replicates((draws @ row)[:, None], None, row.mean(keepdims=True)) for row in values]
    mean = _mean_over_seeds(seeds, 400)
    by_seed = values.mean(1).var(ddof=1) / SEEDS
    by_identity = values.mean(0).var(ddof=1) / 400
    by_both = values.var(ddof=1, axis=1).mean() / 400 - by_identity
    expected = by_seed + by_identity - by_both / (SEEDS - 1)
    assert mean.std_error is not None
    assert mean.std_error**2 == pytest.approx(expected, rel=0.03)
    assert SEEDS - 1 <= mean.degrees < 10
    reach = mean.std_error * stats.t.ppf(0.975, mean.degrees)
    assert mean.interval == pytest.approx((mean.value - reach, mean.value + reach))


def test_holm_corrects_for_every_pair() -> None:
    generator = np.random.default_rng(2)
    pairs, same = pairs_of_people(generator)
    compared = compare_seeds(
        runs(generator, pairs, same, {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.9}),
        same, 10, pairs, resamples=60,
    )  # fmt: skip
    assert next(iter(compared.means)) == "d" and len(compared.differences) == 6
    ordered = sorted(compared.differences, key=lambda each: each.p_value or 0)
    largest = 0.0
    for rank, each in enumerate(ordered):
        assert each.p_value is not None
        largest = max(largest, min(1, (6 - rank) * each.p_value))
        assert each.adjusted_p_value == largest
        assert each.smallest_detectable and each.mean.std_error
        quantiles = stats.t.ppf([1 - 0.025 / 6, 0.8], each.mean.degrees).sum()
        assert each.smallest_detectable == pytest.approx(quantiles * each.mean.std_error)


def test_a_smaller_error_rate_is_better() -> None:
    generator = np.random.default_rng(3)
    pairs, same = pairs_of_people(generator)
    gains = {"good": 1.0, "bad": 0.0}
    rows = runs(generator, pairs, same, gains)
    compared = compare_seeds(rows, same, 10, pairs, "equal_error_rate", resamples=60)
    assert list(compared.means) == ["good", "bad"] and compared.winner == "good"
    assert compared.differences[0].mean.value > 0
    compared = compare_seeds(rows, same, 10, pairs, "true_accept_rate", 0.1, resamples=60)
    assert compared.winner == "good"


def test_one_seed_has_no_p_value() -> None:
    generator = np.random.default_rng(4)
    pairs, same = pairs_of_people(generator)
    rows = {name: each[:1] for name, each in runs(generator, pairs, same, {"a": 0, "b": 1}).items()}
    compared = compare_seeds(rows, same, 10, pairs, resamples=20)
    assert compared.winner is None and compared.differences[0].p_value is None
    assert compared.means["a"].interval is None and compared.means["a"].seed_std is None


def test_seeds_that_do_not_match_are_refused() -> None:
    same = np.arange(40) % 2 == 0
    with pytest.raises(ValueError, match=r"shapes \[\(1, 40\), \(2, 40\)\]"):
        compare_seeds({"a": np.ones((1, 40)), "b": np.ones((2, 40))}, same)
    with pytest.raises(ValueError, match="no training"):
        compare_seeds({}, same)
    with pytest.raises(ValueError, match="metric = 'f1'"):
        compare_seeds({"a": np.ones((1, 40))}, same, metric="f1")  # type: ignore[arg-type]
