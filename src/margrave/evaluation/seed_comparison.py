"""Comparison of trainings that were repeated with several seeds, on the same test pairs.

Here, a training is one configuration, such as a loss, together with its runs, one for each seed.
The difference between two trainings is uncertain for two reasons: the choice of seeds, and the
choice of test identities. Seeds and identities are crossed: the model of every seed is tested on
every identity. The variance of a mean over seeds is therefore that of two-way clustering,

    V = V_seeds + V_identities − V_both

V_seeds is the sample variance over seeds divided by their number S. V_identities is the variance of
the mean over seeds when identities are resampled. V_both is the part that V_seeds and V_identities
share. It is (V_single − V_identities) / (S − 1), where V_single is the mean bootstrap variance of
single seeds. V is at least V_seeds and at least V_identities. Two trainings are compared seed by
seed, because a seed determines the initialization and the order of the images.
Tests use Student's t with Satterthwaite's degrees of freedom for V.

Sources: Cameron, Gelbach and Miller, "Robust inference with multiway clustering" (2011), for V;
Satterthwaite (1946) for the degrees of freedom; Holm, "A simple sequentially rejective multiple
test procedure" (1979), for the correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from scipy import special

from margrave.evaluation.pair_bootstrap import (
    PairStatistics,
    Replicates,
    effective_identity_count,
    replicates,
)
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.roc import check_pairs

SIGNIFICANCE_LEVEL = 0.05
POWER = 0.8
PairMetric = Literal["accuracy", "area_under_roc", "equal_error_rate", "true_accept_rate"]
METRICS: tuple[PairMetric, ...] = (
    "accuracy",
    "area_under_roc",
    "equal_error_rate",
    "true_accept_rate",
)


@dataclass(frozen=True)
class SeedMean:
    """The mean over seeds of one training's metric, or of the difference between two trainings.

    Attributes:
        value: the mean over seeds.
        seed_values: (S,) the value of each seed.
        std_error: the mean's standard error over seeds and identities; None with one seed.
        degrees: degrees of freedom of the standard error; 0 with one seed.
        interval: the mean's 95 % confidence interval; None with one seed.
    """

    value: float
    seed_values: tuple[float, ...]
    std_error: float | None
    degrees: float
    interval: Interval | None

    @property
    def seed_std(self) -> float | None:
        """The sample standard deviation over seeds; None with one seed."""
        return float(np.std(self.seed_values, ddof=1)) if len(self.seed_values) > 1 else None


@dataclass(frozen=True)
class SeedDifference:
    """How much better the second of two trainings is than the first, in one metric.

    Attributes:
        first: the first training's name.
        second: the second training's name.
        mean: the difference second − first (for the EER, first − second); a positive value means
            that the second is better.
        p_value: two-sided p value of the hypothesis that both are equally good; None with one seed.
        adjusted_p_value: the p value after Holm's correction for all compared pairs of trainings;
            None with one seed.
        smallest_detectable: the smallest true difference that this comparison finds significant
            with a power of 0.8, at Holm's strictest level (5 % / number of compared pairs of
            trainings); None with one seed.
    """

    first: str
    second: str
    mean: SeedMean
    p_value: float | None
    adjusted_p_value: float | None
    smallest_detectable: float | None

    @property
    def better(self) -> str | None:
        """The significantly better training's name, after Holm's correction; None if neither is."""
        if self.adjusted_p_value is None or self.adjusted_p_value >= SIGNIFICANCE_LEVEL:
            return None
        return self.second if self.mean.value > 0 else self.first


@dataclass(frozen=True)
class SeedComparison:
    """Trainings compared over seeds and identities.

    Attributes:
        means: training's name -> its mean over seeds, best training first.
        differences: the difference between every two trainings; the one with the better mean is
            second.
    """

    means: dict[str, SeedMean]
    differences: tuple[SeedDifference, ...]

    @property
    def winner(self) -> str | None:
        """The training that is significantly better than all others; None if there is none."""
        for name in self.means:
            comparisons = [
                difference
                for difference in self.differences
                if name in (difference.first, difference.second)
            ]
            if comparisons and all(difference.better == name for difference in comparisons):
                return name
        return None

    def not_worse_than(self, name: str) -> list[str]:
        """The other trainings that are not significantly worse than ``name``, best first."""
        worse = {
            difference.first
            for difference in self.differences
            if difference.better == difference.second == name
        }
        return [training for training in self.means if training not in {name, *worse}]


def compare_seeds(
    distances: dict[str, np.ndarray],
    same: np.ndarray,
    folds: int = 10,
    identities: np.ndarray | None = None,
    metric: PairMetric = "accuracy",
    far_target: float = 0.01,
    resamples: int = 300,
    seed: int = 0,
) -> SeedComparison:
    """Compare trainings that were repeated with the same seeds, on the same pairs.

    Args:
        distances: training's name -> (S, P) squared distances in [0, 4], one row per seed; the
            order of the seeds is the same for all trainings.
        same: (P,) bool, whether each pair is genuine.
        folds: number of contiguous folds of the pairs.
        identities: (P, 2) labels of both sides; None resamples pairs.
        metric: the metric to compare.
        far_target: the FAR target for ``true_accept_rate``; other metrics ignore it.
        resamples: number of bootstrap replicates, at least 2.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there are no trainings, their numbers of seeds or pairs differ, ``metric`` is
            unknown, or the pairs or identities are invalid (see ``bootstrap_pairs``).

    >>> same, noise = np.arange(400) % 2 == 0, np.random.default_rng(0).standard_normal((4, 400))
    >>> good, bad = (np.where(same, 1.0, 2.0) + noise * std for std in (0.3, 0.9))
    >>> runs = {"good": good.clip(0, 4), "bad": bad.clip(0, 4)}
    >>> compare_seeds(runs, same, resamples=50).winner
    'good'
    """
    if metric not in METRICS:
        raise ValueError(f"metric = {metric!r}; choices: {', '.join(METRICS)}")
    if len(shapes := {np.shape(values) for values in distances.values()}) != 1:
        raise ValueError(
            "all trainings must have the same numbers of seeds and pairs, but their distances have "
            f"the shapes {sorted(shapes)}"
            if shapes
            else "there is no training to compare"
        )
    replicates_of = {
        name: _seed_replicates(
            seed_distances, same, folds, identities, metric, far_target, resamples, seed
        )
        for name, seed_distances in distances.items()
    }
    sign = -1 if metric == "equal_error_rate" else 1
    identity_count = effective_identity_count(np.asarray(same, bool), identities)
    means = {
        name: _mean_over_seeds(seed_replicates, identity_count)
        for name, seed_replicates in replicates_of.items()
    }
    order = sorted(means, key=lambda name: sign * means[name].value, reverse=True)
    differences = []
    # The order is best first, so the better training of each pair comes first; it becomes `second`.
    for second, first in combinations(order, 2):
        minuend, subtrahend = (second, first) if sign == 1 else (first, second)
        by_seed = [
            a - b for a, b in zip(replicates_of[minuend], replicates_of[subtrahend], strict=True)
        ]
        differences.append(
            _test_difference(first, second, _mean_over_seeds(by_seed, identity_count))
        )
    return SeedComparison(
        {name: means[name] for name in order}, _apply_holm_correction(differences)
    )


def _seed_replicates(
    distances: np.ndarray,
    same: np.ndarray,
    folds: int,
    identities: np.ndarray | None,
    metric: PairMetric,
    far_target: float,
    resamples: int,
    seed: int,
) -> list[Replicates]:
    """One metric's replicates for each row of ``distances``, all with the same pair weights."""
    # `METRICS` has the order of the metrics in `PairStatistics`, here with a single FAR target.
    column, seed_replicates = METRICS.index(metric), []
    for row in distances:
        checked, is_genuine = check_pairs(row, same)
        statistics = PairStatistics(checked, is_genuine, folds, [far_target])
        all_metrics = replicates(statistics, is_genuine, folds, identities, resamples, seed)
        seed_replicates.append(all_metrics.metric(column))
    return seed_replicates


def _mean_over_seeds(seed_replicates: Sequence[Replicates], identity_count: float) -> SeedMean:
    """The mean over seeds and its uncertainty; see the module's docstring.

    Args:
        seed_replicates: the replicates of one metric for each seed.
        identity_count: the effective number of identities.
    """
    values = np.array([float(single.point[0]) for single in seed_replicates])
    count, mean = len(values), float(values.mean())
    if count < 2:
        return SeedMean(mean, tuple(values.tolist()), None, 0.0, None)
    # The bootstrap's variance is too small by the factor (n − 1) / n for n identities.
    correction = identity_count / max(1.0, identity_count - 1)
    v_identities = Replicates.mean(seed_replicates).corrected_samples().var() * correction
    v_single = np.mean(
        [single.corrected_samples().var() * correction for single in seed_replicates]
    )
    v_seeds = values.var(ddof=1) / count
    v_both = max(0.0, (v_single - v_identities) / (count - 1))
    variance = max(v_seeds + v_identities - v_both, v_seeds, v_identities)
    if variance <= 0:
        return SeedMean(mean, tuple(values.tolist()), 0.0, count - 1.0, (mean, mean))
    denominator = v_seeds**2 / (count - 1)
    denominator += (variance - v_seeds) ** 2 / max(1.0, identity_count - 1)
    degrees = float(max(1.0, variance**2 / denominator))
    std_error = float(np.sqrt(variance))
    # The 97.5 % quantile bounds a two-sided 95 % interval.
    half_width = std_error * special.stdtrit(degrees, 0.975)
    interval = float(mean - half_width), float(mean + half_width)
    return SeedMean(mean, tuple(values.tolist()), std_error, degrees, interval)


def _test_difference(first: str, second: str, mean: SeedMean) -> SeedDifference:
    """Test whether a mean difference is 0; the p value is not yet corrected."""
    p_value = None
    if mean.std_error is not None:
        if mean.std_error > 0:
            p_value = float(2 * special.stdtr(mean.degrees, -abs(mean.value) / mean.std_error))
        else:
            p_value = 1.0 if mean.value == 0 else 0.0
    return SeedDifference(first, second, mean, p_value, p_value, None)


def _apply_holm_correction(differences: Sequence[SeedDifference]) -> tuple[SeedDifference, ...]:
    """Add Holm's adjusted p values and the smallest detectable differences."""
    count, max_adjusted = len(differences), 0.0
    corrected = list(differences)
    order = sorted(range(count), key=lambda index: differences[index].p_value or 0.0)
    for rank, index in enumerate(order):
        difference = differences[index]
        if difference.p_value is None or difference.mean.std_error is None:
            continue
        # Adjusted p values must not decrease as p values increase.
        max_adjusted = max(max_adjusted, min(1.0, (count - rank) * difference.p_value))
        quantile_sum = special.stdtrit(
            difference.mean.degrees, [1 - SIGNIFICANCE_LEVEL / 2 / count, POWER]
        ).sum()
        corrected[index] = replace(
            difference,
            adjusted_p_value=max_adjusted,
            smallest_detectable=float(quantile_sum * difference.mean.std_error),
        )
    return tuple(corrected)
