"""Comparison of two models on the same pairs, with significance tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from margrave.evaluation.pair_bootstrap import PairStatistics, effective_identity_count, replicates
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.roc import check_pairs
from margrave.evaluation.tail_bootstrap import small_sample_factor

# Quantiles of the normal distribution: 97.5 % for a two-sided level of 5 %, and 80 % power.
_SIGNIFICANCE_QUANTILE, _POWER_QUANTILE = 1.959964, 0.841621
_SIGNIFICANCE_LEVEL = 0.05
# With fewer allowed false accepts, ``Difference.too_few_impostors`` is True.
_MIN_FALSE_ACCEPTS = 10
# Smaller differences are treated as 0.
_ROUNDING_ERROR = 1e-12


@dataclass(frozen=True)
class Difference:
    """The difference between two models in one metric on the same pairs.

    Attributes:
        metric: accuracy, area_under_roc, equal_error_rate or true_accept_rate.
        far_target: the FAR target of a true accept rate; None for other metrics.
        first: the first model's value.
        second: the second model's value.
        difference: second − first.
        interval: the difference's confidence interval.
        p_value: two-sided p value of the hypothesis that both models are equally good; None if the
            FAR target allows no false accept: the highest impostor score alone then determines each
            model's threshold.
        more_pairs: how many more pairs of the same kind are needed to find a difference of this
            size significant at 5 % with a power of 0.8; 0 if it already is significant; None if the
            difference is 0 or there is no p value.
        too_few_impostors: True if the FAR target allows fewer than ten false accepts, so that
            single impostor pairs determine the thresholds; False for metrics without a target.
    """

    metric: str
    far_target: float | None
    first: float
    second: float
    difference: float
    interval: Interval
    p_value: float | None
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
    """Compare two models on the same pairs with a paired bootstrap.

    Both models are evaluated on the same replicates, so the difficulty of the pairs cancels out.
    The p value and the interval assume that the difference is normally distributed with the std of
    its replicates.

    If the models decide differently on only d pairs (or on pairs of only d identities), p is at
    least 2^(1 − d), the sign test's minimum, and the interval is widened accordingly. If the
    models make the same decisions on all pairs, the std is 0. The interval's half-width is then the
    upper confidence limit of a rate with zero events in n trials, where n is the effective number
    of identities.

    Args:
        first_distances: (P,) squared distances of the first model.
        second_distances: (P,) squared distances of the second model.
        same: (P,) bool, whether each pair is genuine.
        folds: number of contiguous folds of the pairs.
        identities: (P, 2) labels of both sides; None resamples pairs.
        far_targets: FAR targets of the true accept rates to compare.
        resamples: number of replicates, at least 2.
        seed: seed of the bootstrap.
        level: target coverage of the intervals.

    Returns:
        The differences in accuracy, AUC, EER, and TAR at each FAR target.

    Raises:
        ValueError: the pairs, the identities or ``resamples`` are invalid, see ``bootstrap_pairs``.

    >>> same = np.arange(400) % 2 == 0
    >>> noise = np.random.default_rng(0).standard_normal((2, 400))
    >>> good, bad = np.where(same, 1.0, 2.0) + noise * [[0.2], [0.6]]
    >>> accuracy = compare_pairs(bad.clip(0, 4), good.clip(0, 4), same, resamples=100)[0]
    >>> accuracy.difference > 0, accuracy.p_value < 0.01, accuracy.more_pairs
    (True, True, 0)
    """
    if resamples < 2:
        raise ValueError(f"resamples must be at least 2, got {resamples}")
    bootstrapped, accepted = [], []
    for distances in (first_distances, second_distances):
        checked, same = check_pairs(distances, same)
        statistics = PairStatistics(checked, same, folds, far_targets)
        bootstrapped.append(replicates(statistics, same, folds, identities, resamples, seed))
        accepted.append(statistics.accepted())
    first, second = bootstrapped
    identity_count = effective_identity_count(same, identities)
    impostors = int((~same).sum())
    stds = (second - first).corrected_samples().std(0) * small_sample_factor(identity_count)
    names = ["accuracy", "area_under_roc", "equal_error_rate"]
    metrics = [(name, None) for name in names] + [("true_accept_rate", far) for far in far_targets]
    normal_quantile = NormalDist().inv_cdf((1 + level) / 2)
    differences = []
    for index, (name, far) in enumerate(metrics):
        difference = float(second.point[index] - first.point[index])
        difference = 0.0 if abs(difference) < _ROUNDING_ERROR else difference
        key = name if far is None else far
        discordant = None  # The AUC has no threshold, hence no decisions.
        if key in accepted[0]:
            differ = accepted[0][key] != accepted[1][key]
            # The accuracy depends on the decisions about all pairs, the TAR on those about genuine
            # pairs. The EER depends on both classes: use the class with fewer discordant pairs, but
            # ignore a class with none.
            classes_by_metric = {
                "accuracy": [np.ones_like(same)],
                "equal_error_rate": [same, ~same],
                "true_accept_rate": [same],
            }
            counts = [
                _independent_count(differ & in_class, identities)
                for in_class in classes_by_metric[name]
            ]
            discordant = min((count for count in counts if count), default=0)
        p_value, std = _p_value_and_std(difference, float(stds[index]), discordant)
        untestable = far is not None and far * impostors < 1
        half_width = normal_quantile * std or 1 - ((1 - level) / 2) ** (1 / identity_count)
        differences.append(
            Difference(
                metric=name,
                far_target=far,
                first=float(first.point[index]),
                second=float(second.point[index]),
                difference=difference,
                interval=(max(-1.0, difference - half_width), min(1.0, difference + half_width)),
                p_value=None if untestable else p_value,
                more_pairs=None if untestable else _more_pairs(difference, std, p_value, len(same)),
                too_few_impostors=far is not None and far * impostors < _MIN_FALSE_ACCEPTS,
            )
        )
    return tuple(differences)


def _independent_count(selected: np.ndarray, identities: np.ndarray | None) -> int:
    """The number of ``selected`` pairs (a (P,) mask), or of their identities if that is smaller."""
    count = int(selected.sum())
    if identities is None:
        return count
    return min(count, len(np.unique(np.asarray(identities)[selected])))


def _p_value_and_std(difference: float, std: float, discordant: int | None) -> tuple[float, float]:
    """The p value, raised to the sign test's minimum if it is lower, and the std raised to match.

    Args:
        difference: the difference between the models.
        std: the difference's std over replicates.
        discordant: the number of independent pairs that the models decide differently; None if the
            metric has no decisions.
    """
    if difference == 0:
        return 1.0, std
    p_value = math.erfc(abs(difference) / std / math.sqrt(2)) if std > 0 else 0.0
    minimum = 0.0 if discordant is None else min(1.0, 2.0 ** (1 - discordant))
    if p_value >= minimum:
        return p_value, std
    # At most one discordant pair gives a minimum of 1, whose quantile is 0. A quantile of at least
    # 1 avoids a division by 0.
    quantile = max(1.0, -NormalDist().inv_cdf(minimum / 2))
    return minimum, max(std, abs(difference) / quantile)


def _more_pairs(difference: float, std: float, p_value: float, pairs: int) -> int | None:
    """See ``Difference.more_pairs``; assumes that the std is proportional to 1 / √pairs."""
    if difference == 0:
        return None
    if p_value <= _SIGNIFICANCE_LEVEL:
        return 0
    quantiles = _SIGNIFICANCE_QUANTILE + _POWER_QUANTILE
    required = pairs * (quantiles * std / abs(difference)) ** 2
    return max(1, math.ceil(required - pairs))
