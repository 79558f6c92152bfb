"""Intervals of rates that stay honest next to 0 and 1, and with a handful of people.

Replicates of a bootstrap know only the people that were seen: where nobody failed, none of them
fails, and "100 to 100 %" says nothing. A rate's interval is therefore a binomial one, for the
number of independent trials that the figure is worth:

    n = rate (1 − rate) / variance · (z / t)²

at most the number of observations, with the bootstrap's variance, and Student's t for as many
degrees of freedom as there are people who make that variance, though t takes away none of the
trials that the number of people warrants; where the variance is zero, n is that number. The
binomial interval is Jeffreys', modified to be Clopper and Pearson's at 0 and 1.

Sources: Korn and Graubard, "Confidence intervals for proportions with small expected number of
positive counts estimated from survey data" (1998), for n; Brown, Cai and DasGupta, "Interval
estimation for a binomial proportion" (2001), for the modified interval; Kish, "Survey Sampling"
(1965), for the number of people where they weigh unequally; Satterthwaite (1946) for t. What it
covers is measured by benchmarks/coverage.py.
"""

from __future__ import annotations

import numpy as np
from scipy import special

Interval = tuple[float, float]


def effective_people(shares: np.ndarray) -> float:
    """As how many equal people these count: n = (Σ shares)² / Σ shares².

    Args:
        shares: how much of the figure each person makes up, in any unit.

    >>> effective_people(np.ones(30)), round(effective_people(np.array([9, 1, 1, 1])), 2)
    (30.0, 1.71)
    """
    shares = np.asarray(shares, np.float64)
    return float(shares.sum() ** 2 / np.square(shares).sum())


def degrees_of_freedom(contributions: np.ndarray) -> float:
    """How well people's contributions determine their variance.

    Satterthwaite's 2 / (Σ d⁴ / (Σ d²)² − 1 / n), which for normal contributions is about n; but no
    more than the people who make the errors (or, where those are fewer, the hits) count as. Never
    below 1 nor above n − 1.

    Args:
        contributions: (n,) how far each person moves the figure from its mean.

    >>> degrees_of_freedom(np.array([1.0, -1.0, 1.0, -1.0])), degrees_of_freedom(np.zeros(4))
    (2.0, 3.0)
    >>> degrees_of_freedom(np.array([99.0] + 99 * [-1.0]))
    1.0
    """
    contributions = np.asarray(contributions, np.float64)
    squares = np.square(contributions)
    most = max(1.0, len(squares) - 1.0)
    if not squares.sum():
        return most
    excess = float(np.square(squares).sum() / squares.sum() ** 2) - 1 / len(squares)
    if excess > 0:
        most = min(most, 2 / excess)
    for shortfall in (contributions.max() - contributions, contributions - contributions.min()):
        if shortfall.any():
            most = min(most, effective_people(shortfall))
    return max(1.0, most)


def freedom_with_threshold(
    contributions: np.ndarray, accepted: np.ndarray, variance: float
) -> float:
    """Degrees of freedom of a TAR's variance: the genuine people's part, the threshold's the rest.

    A threshold hangs on the people whose impostor pairs it accepts. The parts are joined as
    Satterthwaite does: variance² / Σ part² / freedom.

    Args:
        contributions: (n,) how far each genuine person moves the TAR at a fixed threshold.
        accepted: the people of the impostor pairs at and above the threshold.
        variance: of the TAR.
    """
    of_genuine = min(variance, float(np.square(contributions).sum()))
    genuine = degrees_of_freedom(contributions)
    if not variance > of_genuine:
        return genuine
    threshold = threshold_freedom(accepted, len(contributions))
    parts = of_genuine**2 / genuine + (variance - of_genuine) ** 2 / threshold
    return variance**2 / parts


def threshold_freedom(accepted: np.ndarray, people: float) -> float:
    """Degrees of freedom of a threshold, which hangs on whose impostor pairs it accepts.

    Args:
        accepted: the people of the impostor pairs at and above the threshold.
        people: how many there are in all.
    """
    those = effective_people(np.unique(accepted, return_counts=True)[1])
    return max(1.0, min(those - 1, people - 1))


def student_quantile(freedom: float, level: float = 0.95) -> float:
    """Student's two-sided quantile.

    >>> round(student_quantile(10), 3)
    2.228
    """
    return float(special.stdtrit(freedom, (1 + level) / 2))


def student_factor(freedom: float, level: float = 0.95) -> float:
    """How much farther Student's quantile lies out than the normal distribution's.

    >>> round(student_factor(10), 3)
    1.137
    """
    return student_quantile(freedom, level) / float(special.ndtri((1 + level) / 2))


def independent_trials(
    rate: float,
    variance: float,
    people: float,
    observations: int,
    freedom: float,
    level: float = 0.95,
) -> float:
    """How many independent trials a rate is worth: see the module's text.

    Args:
        rate: in [0, 1].
        variance: of the rate, over other people.
        people: how many independent people there are, see ``effective_people``; more degrees of
            freedom than people are not believed.
        observations: pairs or probes that the rate is over.
        freedom: degrees of freedom of the variance.
        level: coverage aimed at.

    >>> independent_trials(1.0, 0.0, people=5, observations=75, freedom=4)
    5
    """
    spread = rate * (1 - rate)
    if spread <= 0:
        return people
    worth = spread / max(variance, spread / observations)
    freedom = max(1.0, min(freedom, people))
    # A threshold's uncertainty may leave fewer than there are people; Student's t may not.
    return max(worth / student_factor(freedom, level) ** 2, min(worth, people))


def rate_interval(
    rate: float, trials: float, level: float = 0.95, continuity: float = 0.5
) -> Interval:
    """An interval of a rate of so many independent trials.

    Args:
        rate: in [0, 1].
        trials: see ``independent_trials``.
        level: coverage aimed at.
        continuity: how much of a trial either end is moved outwards: 0.5 is Jeffreys', 1 Clopper
            and Pearson's interval. At rates of 0 and 1 it is always the latter.

    >>> [round(end, 3) for end in rate_interval(1.0, 5)]
    [0.478, 1.0]
    >>> [round(end, 3) for end in rate_interval(0.9, 100)]
    [0.83, 0.947]
    """
    hits, misses = rate * trials, (1 - rate) * trials
    tail = (1 - level) / 2

    def outwards(least: float) -> float:
        # From 1 at no hits or misses to ``continuity`` at a whole one, without a step.
        return 1 - (1 - continuity) * min(1.0, least)

    low, high = 0.0, 1.0
    if hits > 0:
        beside = outwards(misses)
        low = float(special.betaincinv(hits + 1 - beside, misses + beside, tail))
    if misses > 0:
        beside = outwards(hits)
        high = float(special.betaincinv(hits + beside, misses + 1 - beside, 1 - tail))
    return low, high
