"""Which of two models is better on the same pairs, and whether that means anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.significance import PairStatistics, number_of_people, replicates
from margrave.evaluation.tail_bootstrap import small_sample_factor
from margrave.evaluation.verification import check_pairs

# Quantiles of the normal distribution: 97.5 % for two-sided 5 %, and 80 % power.
_SIGNIFICANT, _POWER = 1.959964, 0.841621
_LEVEL = 0.05
_FEW = 10
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """How much better the second model is than the first, by one metric on the same pairs.

    Attributes:
        metric: accuracy, area_under_roc, equal_error_rate or true_accept_rate.
        far_target: of a true accept rate, None otherwise.
        first: the metric of the first model.
        second: of the second.
        difference: second − first.
        interval: of the difference.
        p_value: of a difference as large, either way, between two models that are equally good.
        more_pairs: how many more pairs like these would most likely (with a power of 0.8) make a
            difference of this size significant at 5 %; 0 if it is, None if there is no difference.
        too_few_impostors: fewer than ten false accepts were allowed, so that single impostor pairs
            set the thresholds of a true accept rate.
    """

    metric: str
    far_target: float | None
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float
    more_pairs: int | None
    too_few_impostors: bool = False


def compare_pairs(
    first_distances: np.ndarray,
    second_distances: np.ndarray,
    same: np.ndarray,
    folds: int = 10,
    identities: np.ndarray | None = None,
    far_targets: Sequence[float] = (),
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Difference, ...]:
    """Which of two models is better on the same pairs, and whether that means anything.

    Both are judged on every replicate, so what makes pairs hard for either cancels. The p value
    and the interval take the difference for normal, with the replicates' deviation; but where the
    models decide differently on d pairs only, or on pairs of d people, p is at least 2^(1 − d),
    which is as small as the sign test's can be, and the interval is widened to match. Where they
    decide alike on all n people, the interval is that of no event among n.

    Args:
        first_distances: (P,) squared distances of one model.
        second_distances: (P,) of the other.
        same: (P,) bool.
        folds: contiguous folds of the pairs.
        identities: (P, 2) integers, who is on either side; None resamples pairs.
        far_targets: of true accept rates to compare.
        resamples: replicates, at least 2.
        seed: of the replicates.
        level: coverage of the intervals.

    Raises:
        ValueError: as ``bootstrap_pairs``.

    >>> same = np.arange(400) % 2 == 0
    >>> noise = np.random.default_rng(0).standard_normal((2, 400))
    >>> good, bad = np.where(same, 1.0, 2.0) + noise * [[0.2], [0.6]]
    >>> found = compare_pairs(bad.clip(0, 4), good.clip(0, 4), same, resamples=100)[0]
    >>> found.difference > 0, found.p_value < 0.01, found.more_pairs
    (True, True, 0)
    """
    if resamples < 2:
        raise ValueError(f"resamples = {resamples}; give at least 2")
    drawn, accepted = [], []
    for distances in (first_distances, second_distances):
        checked, same = check_pairs(distances, same)
        statistics = PairStatistics(checked, same, folds, far_targets)
        drawn.append(replicates(statistics, same, folds, identities, resamples, seed))
        accepted.append(statistics.accepted())
    one, other = drawn
    people = number_of_people(same, identities)
    deviations = (other - one).without_excess().std(0) * small_sample_factor(people)
    names = ["accuracy", "area_under_roc", "equal_error_rate"]
    metrics = [(name, None) for name in names] + [("true_accept_rate", far) for far in far_targets]
    wide = NormalDist().inv_cdf((1 + level) / 2)
    found = []
    for which, (name, far) in enumerate(metrics):
        difference = float(other.point[which] - one.point[which])
        difference = 0.0 if abs(difference) < _ROUNDING else difference
        kind = name if far is None else far
        discordant = None
        if kind in accepted[0]:
            differ = accepted[0][kind] != accepted[1][kind]
            parts = {"true_accept_rate": [same], "equal_error_rate": [same, ~same]}
            counts = [_independent(differ & part, identities) for part in parts.get(name, [differ])]
            # An equal error rate needs both classes; one may be unmoved between two points.
            discordant = min((count for count in counts if count), default=0)
        p_value, deviation = _tested(difference, float(deviations[which]), discordant)
        around = wide * deviation or 1 - ((1 - level) / 2) ** (1 / people)
        found.append(
            Difference(
                metric=name,
                far_target=far,
                first=float(one.point[which]),
                second=float(other.point[which]),
                difference=difference,
                interval=(max(-1.0, difference - around), min(1.0, difference + around)),
                p_value=p_value,
                more_pairs=_more_pairs(difference, deviation, p_value, len(same)),
                too_few_impostors=far is not None and far * int((~same).sum()) < _FEW,
            )
        )
    return tuple(found)


def _independent(pairs: np.ndarray, identities: np.ndarray | None) -> int:
    """How many pairs these are, or people where they are fewer."""
    count = int(pairs.sum())
    return count if identities is None else min(count, len(np.unique(identities[pairs])))


def _tested(difference: float, deviation: float, discordant: int | None) -> tuple[float, float]:
    """The p value, and the deviation that goes with it."""
    if difference == 0:
        return 1.0, deviation
    p_value = math.erfc(abs(difference) / deviation / math.sqrt(2)) if deviation > 0 else 0.0
    least = 0.0 if discordant is None else min(1.0, 2.0 ** (1 - discordant))
    if p_value >= least:
        return p_value, deviation
    # Where one pair is all that differs, the difference is as large as its own deviation.
    quantile = max(1.0, -NormalDist().inv_cdf(least / 2))
    return least, max(deviation, abs(difference) / quantile)


def _more_pairs(difference: float, deviation: float, p_value: float, pairs: int) -> int | None:
    """The deviation falls with the root of the number of pairs."""
    if difference == 0:
        return None
    if p_value <= _LEVEL:
        return 0
    needed = pairs * ((_SIGNIFICANT + _POWER) * deviation / abs(difference)) ** 2
    return max(1, math.ceil(needed - pairs))
