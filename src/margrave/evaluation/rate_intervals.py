"""Confidence intervals for rates, with reliable coverage near 0 and 1 and for few identities.

A bootstrap's percentile interval is useless if no identity has an error: then no replicate has an
error either, and the interval is "100 to 100 %". Rates therefore get a binomial interval with the
effective sample size

    n = rate (1 − rate) / variance · (z / t)²

The variance is the bootstrap's, z is the two-sided quantile of the normal distribution at the
target coverage, and t is that of Student's t distribution, whose degrees of freedom depend on the
identities that contribute to the variance. The first factor is limited to the number of
observations. If it exceeds the effective number of identities, (z / t)² reduces it at most to that
number; otherwise, (z / t)² is omitted. At rates of 0 and 1, n is the effective number of
identities. The binomial interval is Jeffreys', modified to equal Clopper and Pearson's at rates of
0 and 1.

Sources: Korn and Graubard, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data" (1998), for n; Brown, Cai and DasGupta, "Interval
estimation for a binomial proportion" (2001), for the modified interval; Kish, "Survey Sampling"
(1965), for the effective number of identities; Satterthwaite (1946) for the degrees of freedom.
benchmarks/coverage.py measures the coverage.
"""

from __future__ import annotations

import numpy as np
from scipy import special

Interval = tuple[float, float]


def effective_identities(weights: np.ndarray) -> float:
    """The effective number of identities: n = (Σ weights)² / Σ weights².

    Args:
        weights: (I,) the weight of each identity, such as its number of observations; only their
            ratios matter.

    >>> effective_identities(np.ones(30)), round(effective_identities(np.array([9, 1, 1, 1])), 2)
    (30.0, 1.71)
    """
    weights = np.asarray(weights, np.float64)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def degrees_of_freedom(contributions: np.ndarray) -> float:
    """Degrees of freedom of a metric's variance, from the contributions d of n identities.

    This is Satterthwaite's formula, 2 / (Σ d⁴ / (Σ d²)² − 1 / n), which gives about n for normally
    distributed contributions. The result is limited to the range from 1 to n − 1. It also does not
    exceed either of two effective numbers of identities (see ``effective_identities``): the one
    with the identities' errors as weights, and the one with their hits as weights. An identity's
    errors are measured by the distance of its contribution from the largest one, its hits by the
    distance from the smallest one.

    Args:
        contributions: (n,) how much the metric changes with each identity's weight; they sum to
            about 0.

    >>> degrees_of_freedom(np.array([1.0, -1.0, 1.0, -1.0])), degrees_of_freedom(np.zeros(4))
    (2.0, 3.0)
    >>> degrees_of_freedom(np.array([99.0] + 99 * [-1.0]))
    1.0
    """
    contributions = np.asarray(contributions, np.float64)
    squares = np.square(contributions)
    degrees = max(1.0, len(squares) - 1.0)
    if not squares.sum():
        return degrees
    excess = float(np.square(squares).sum() / squares.sum() ** 2) - 1 / len(squares)
    if excess > 0:
        degrees = min(degrees, 2 / excess)
    errors, hits = contributions.max() - contributions, contributions - contributions.min()
    for weights in (errors, hits):
        if weights.any():
            degrees = min(degrees, effective_identities(weights))
    return max(1.0, degrees)


def tar_degrees_of_freedom(
    contributions: np.ndarray, accepted_labels: np.ndarray, variance: float
) -> float:
    """Degrees of freedom of a TAR's variance, to which genuine pairs and the threshold contribute.

    Satterthwaite's formula combines these two parts of the variance:
    variance² / Σ (part² / the part's degrees of freedom).

    Args:
        contributions: (n,) how much each identity's genuine pairs shift the TAR at a fixed
            threshold.
        accepted_labels: the identities of the impostor pairs above the threshold, or of those at
            the threshold if none are above it, in an array of any shape.
        variance: the TAR's variance.
    """
    genuine_variance = min(variance, float(np.square(contributions).sum()))
    genuine_degrees = degrees_of_freedom(contributions)
    if not variance > genuine_variance:
        return genuine_degrees
    threshold_degrees = threshold_degrees_of_freedom(accepted_labels, len(contributions))
    denominator = (
        genuine_variance**2 / genuine_degrees
        + (variance - genuine_variance) ** 2 / threshold_degrees
    )
    return variance**2 / denominator


def threshold_degrees_of_freedom(accepted_labels: np.ndarray, identity_count: float) -> float:
    """Degrees of freedom of a threshold's variance, from the impostor pairs that it accepts.

    Args:
        accepted_labels: the identities of the impostor pairs above the threshold, or of those at
            the threshold if none are above it, in an array of any shape.
        identity_count: number of identities, possibly an effective number; the result is at most
            one less, but at least 1.
    """
    accepted_identities = effective_identities(np.unique(accepted_labels, return_counts=True)[1])
    return max(1.0, min(accepted_identities - 1, identity_count - 1))


def student_quantile(degrees: float, level: float = 0.95) -> float:
    """The two-sided quantile of Student's t at a coverage of ``level``.

    >>> round(student_quantile(10), 3)
    2.228
    """
    return float(special.stdtrit(degrees, (1 + level) / 2))


def student_factor(degrees: float, level: float = 0.95) -> float:
    """The ratio of Student's two-sided quantile to that of the normal distribution.

    >>> round(student_factor(10), 3)
    1.137
    """
    return student_quantile(degrees, level) / float(special.ndtri((1 + level) / 2))


def effective_sample_size(
    rate: float,
    variance: float,
    identity_count: float,
    observations: int,
    degrees: float,
    level: float = 0.95,
) -> float:
    """The number n of independent trials that have the same uncertainty as a rate.

    The module's docstring explains the formula.

    Args:
        rate: the rate, in [0, 1].
        variance: the rate's variance over identities.
        identity_count: the effective number of identities, see ``effective_identities``; it also
            limits ``degrees``.
        observations: the number of pairs or probes in the rate's denominator.
        degrees: the degrees of freedom of the variance.
        level: target coverage.

    >>> effective_sample_size(1.0, 0.0, identity_count=5, observations=75, degrees=4)
    5
    """
    trial_variance = rate * (1 - rate)
    if trial_variance <= 0:
        return min(identity_count, observations)
    sample_size = trial_variance / max(variance, trial_variance / observations)
    degrees = max(1.0, min(degrees, identity_count))
    # Student's factor does not reduce n below the number of identities; a large variance does.
    return max(sample_size / student_factor(degrees, level) ** 2, min(sample_size, identity_count))


def rate_interval(
    rate: float, sample_size: float, level: float = 0.95, continuity: float = 0.5
) -> Interval:
    """The confidence interval of a rate with an effective sample size.

    Args:
        rate: the rate, in [0, 1].
        sample_size: the effective sample size, see ``effective_sample_size``.
        level: target coverage.
        continuity: c, where the lower end is a quantile of Beta(hits + 1 − c, misses + c), and the
            upper end one of Beta(hits + c, misses + 1 − c): 0.5 for Jeffreys' interval, 1 for
            Clopper and Pearson's. The lower end's c rises to 1 as misses fall from 1 to 0, the
            upper end's as hits do.

    >>> [round(end, 3) for end in rate_interval(1.0, 5)]
    [0.478, 1.0]
    >>> [round(end, 3) for end in rate_interval(0.9, 100)]
    [0.83, 0.947]
    """
    hits, misses = rate * sample_size, (1 - rate) * sample_size
    tail = (1 - level) / 2

    def continuity_at(count: float) -> float:
        # Falls linearly from 1 at no hits (or misses) to ``continuity`` at one hit (or miss).
        return 1 - (1 - continuity) * min(1.0, count)

    low, high = 0.0, 1.0
    if hits > 0:
        c = continuity_at(misses)
        low = float(special.betaincinv(hits + 1 - c, misses + c, tail))
    if misses > 0:
        c = continuity_at(hits)
        high = float(special.betaincinv(hits + c, misses + 1 - c, 1 - tail))
    return low, high
