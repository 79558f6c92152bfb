"""Comparison of trainings that were repeated with several seeds, on the same pairs.

A training here is one configuration, such as a loss, together with its runs, one for each seed. Two
things make the difference between two trainings uncertain: the seeds, and the identities that the
models are tested on. The two are crossed: every seed's model is tested on every identity. The
variance of a mean over seeds is therefore that of two-way clustering,

    V = V_seeds + V_identities − V_both

V_seeds is the sample variance over seeds divided by their number S. V_identities is the variance of
the mean over seeds when identities are resampled. V_both is the part that both contain; it follows
from the bootstrap variances of single seeds, whose mean is V_identities + (S − 1)·V_both. Two
trainings are compared seed by seed, because a seed determines the initialization and the order of
the images. Tests use Student's t, with Satterthwaite's degrees of freedom of the sum.

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
    """The mean of one metric over the seeds of one training, or of the difference of two.

    Attributes:
        value: the mean over seeds.
        seeds: (S,) the value of each seed.
        std_error: the mean's standard error over seeds and identities; None with one seed.
        degrees: degrees of freedom of the standard error.
        interval: the mean's 95 % confidence interval; None with one seed.
    """

    value: float
    seeds: tuple[float, ...]
    std_error: float | None
    degrees: float
    interval: Interval | None

    @property
    def seed_std(self) -> float | None:
        """The sample standard deviation over seeds; None with one seed."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else None


@dataclass(frozen=True)
class SeedDifference:
    """How much better the second of two trainings is, in one metric.

    Attributes:
        first: the first training's name.
        second: the second training's name.
        mean: second − first; for the EER first − second, so that above 0 the second is better.
        p_value: two-sided, of the hypothesis that both are equally good; None with one seed.
        adjusted: the p value after Holm's correction for all compared pairs of trainings; None with
            one seed.
        smallest_detectable: the true difference that such a comparison finds significant with a
            power of 0.8, at Holm's strictest level, that of the smallest of all p values; None with
            one seed.
    """

    first: str
    second: str
    mean: SeedMean
    p_value: float | None
    adjusted: float | None
    smallest_detectable: float | None

    @property
    def better(self) -> str | None:
        """The significantly better training's name, after the correction; None if neither is."""
        if self.adjusted is None or self.adjusted >= SIGNIFICANCE_LEVEL:
            return None
        return self.second if self.mean.value > 0 else self.first


@dataclass(frozen=True)
class SeedComparison:
    """Trainings compared over seeds and identities.

    Attributes:
        means: each training's mean by name, in order from the best.
        differences: every two trainings' difference, the better one second.
    """

    means: dict[str, SeedMean]
    differences: tuple[SeedDifference, ...]

    @property
    def winner(self) -> str | None:
        """The training that is significantly better than every other; None if there is none."""
        for name in self.means:
            own = [each for each in self.differences if name in (each.first, each.second)]
            if own and all(each.better == name for each in own):
                return name
        return None

    def not_worse_than(self, name: str) -> list[str]:
        """The trainings that are not significantly worse than this one, in order."""
        worse = {each.first for each in self.differences if each.better == each.second == name}
        return [other for other in self.means if other != name and other not in worse]


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
        distances: for each training's name, (S, P) squared distances in [0, 4]: a row for each
            seed, in the same order of seeds.
        same: (P,) bool, whether each pair is genuine.
        folds: number of contiguous folds of the pairs.
        identities: (P, 2) labels of both sides; None resamples pairs.
        metric: the metric to compare.
        far_target: for ``true_accept_rate``, the FAR.
        resamples: number of bootstrap replicates, at least 2.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there are no trainings, their numbers of seeds or pairs differ, or the pairs or
            identities are invalid, see ``bootstrap_pairs``.

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
            "trainings are compared over the same seeds and pairs, but their scores have the "
            f"shapes {sorted(shapes)}"
            if shapes
            else "there is no training to compare"
        )
    samples = {
        name: _seed_replicates(rows, same, folds, identities, metric, far_target, resamples, seed)
        for name, rows in distances.items()
    }
    sign = -1 if metric == "equal_error_rate" else 1
    count = effective_identity_count(np.asarray(same, bool), identities)
    means = {name: _mean(rows, count) for name, rows in samples.items()}
    order = sorted(means, key=lambda name: sign * means[name].value, reverse=True)
    differences = []
    for second, first in combinations(order, 2):
        minuend, subtrahend = (second, first) if sign == 1 else (first, second)
        by_seed = [a - b for a, b in zip(samples[minuend], samples[subtrahend], strict=True)]
        differences.append(_difference(first, second, _mean(by_seed, count)))
    return SeedComparison({name: means[name] for name in order}, _holm(differences))


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
    """One metric's replicates for each training seed, all with the same pair weights."""
    column, results = METRICS.index(metric), []
    for row in distances:
        checked, genuine = check_pairs(row, same)
        statistics = PairStatistics(checked, genuine, folds, [far_target])
        all_metrics = replicates(statistics, genuine, folds, identities, resamples, seed)
        results.append(all_metrics.metric(column))
    return results


def _mean(seeds: Sequence[Replicates], identities: float) -> SeedMean:
    """The mean over seeds and its uncertainty, see the module's text."""
    values = np.array([float(each.point[0]) for each in seeds])
    count, mean = len(values), float(values.mean())
    if count < 2:
        return SeedMean(mean, tuple(values.tolist()), None, 0.0, None)
    correction = identities / max(1.0, identities - 1)
    v_identities = Replicates.mean(seeds).without_excess().var() * correction
    v_single = np.mean([each.without_excess().var() * correction for each in seeds])
    v_seeds = values.var(ddof=1) / count
    v_both = max(0.0, (v_single - v_identities) / (count - 1))
    variance = max(v_seeds + v_identities - v_both, v_seeds, v_identities)
    if variance <= 0:
        return SeedMean(mean, tuple(values.tolist()), 0.0, count - 1.0, (mean, mean))
    parts = v_seeds**2 / (count - 1) + (variance - v_seeds) ** 2 / max(1.0, identities - 1)
    degrees = float(max(1.0, variance**2 / parts))
    std_error = float(np.sqrt(variance))
    half_width = std_error * special.stdtrit(degrees, 0.975)
    interval = float(mean - half_width), float(mean + half_width)
    return SeedMean(mean, tuple(values.tolist()), std_error, degrees, interval)


def _difference(first: str, second: str, mean: SeedMean) -> SeedDifference:
    p_value = None
    if mean.std_error is not None:
        if mean.std_error > 0:
            p_value = float(2 * special.stdtr(mean.degrees, -abs(mean.value) / mean.std_error))
        else:
            p_value = 1.0 if mean.value == 0 else 0.0
    return SeedDifference(first, second, mean, p_value, p_value, None)


def _holm(differences: Sequence[SeedDifference]) -> tuple[SeedDifference, ...]:
    """Add Holm's adjusted p values and the smallest detectable differences."""
    count, largest = len(differences), 0.0
    adjusted = list(differences)
    order = sorted(range(count), key=lambda index: differences[index].p_value or 0.0)
    for rank, index in enumerate(order):
        each = differences[index]
        if each.p_value is None or each.mean.std_error is None:
            continue
        largest = max(largest, min(1.0, (count - rank) * each.p_value))
        quantiles = special.stdtrit(
            each.mean.degrees, [1 - SIGNIFICANCE_LEVEL / 2 / count, POWER]
        ).sum()
        adjusted[index] = replace(
            each,
            adjusted=largest,
            smallest_detectable=float(quantiles * each.mean.std_error),
        )
    return tuple(adjusted)
