"""Bootstrap intervals where only the largest impostor scores were kept.

The scheme is that of :mod:`margrave.evaluation.significance`: identities are drawn with
replacement, a genuine pair weighs as often as its person was drawn, an impostor pair the product
of both, and the variance that the product counts too often is taken out. A replicate's threshold is
where the weights of the tail's pairs use up the false accepts allowed; the rest of the impostors
need not be known, only how much they weigh in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.rate_intervals import (
    Interval,
    degrees_of_freedom,
    effective_people,
    freedom_with_threshold,
    independent_trials,
    rate_interval,
    student_factor,
    student_quantile,
    threshold_freedom,
)

MOST_OPERATIONS = 200_000_000
FEWEST_RESAMPLES = 200
ROOM = 1.5
"""How much longer than the false accepts allowed a tail should be, so that a replicate in which
its pairs weigh little still finds its threshold."""


def tail_length(most_allowed: int) -> int:
    """How many impostor scores to keep so that intervals can be computed.

    >>> tail_length(20)
    94
    """
    return int(ROOM * most_allowed) + 64


@dataclass(frozen=True, eq=False)
class TailIdentities:
    """Who the pairs are of, by numbers 0..I−1; greater numbers are faces of unknown identity.

    Attributes:
        genuine: (G,) the person of each genuine pair.
        tail: (T, 2) both persons of each impostor pair kept; (T, 1) where each of the tail is one
            person's, as in identification.
        images: (I,) how often each identity takes part in impostor pairs, in any unit.
        against_unknown: share of all impostor pairs that have a face of unknown identity.
    """

    genuine: np.ndarray
    tail: np.ndarray
    images: np.ndarray
    against_unknown: float = 0.0


def small_sample_factor(people: float, level: float = 0.95) -> float:
    """How much wider an interval should be than its replicates, which know these people only.

    The bootstrap's variance is that of n people divided by n, and its quantiles are the normal
    distribution's where Student's with n − 1 degrees of freedom belong.

    Args:
        people: n, see :func:`~margrave.evaluation.rate_intervals.effective_people`.
        level: coverage aimed at.

    >>> round(small_sample_factor(30), 3), round(small_sample_factor(5), 3)
    (1.061, 1.584)
    """
    freedom = max(1.0, people - 1)
    return math.sqrt((freedom + 1) / freedom) * student_factor(freedom, level)


def _check_resamples(resamples: int) -> None:
    if resamples < 2:
        raise ValueError(f"resamples = {resamples}; give at least 2, or 0 for no intervals")


def bootstrap_tail(
    genuine: np.ndarray,
    tail: np.ndarray,
    impostors: int,
    allowed: Sequence[int],
    identities: TailIdentities | None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[Interval, Interval]]:
    """Intervals of the TAR and of the threshold for each number of false accepts allowed.

    Args:
        genuine: (G,) scores.
        tail: (T,) descending.
        impostors: how many in all.
        allowed: false accepts, one number per target.
        identities: None resamples pairs.
        resamples: replicates; fewer, at least 200, where there are very many pairs.
        seed: of the replicates.
        level: coverage aimed at.
    """
    _check_resamples(resamples)
    generator = np.random.default_rng(seed)
    order = np.argsort(-genuine, kind="stable")
    descending = genuine[order]
    resamples = min(
        resamples, max(FEWEST_RESAMPLES, MOST_OPERATIONS // (len(genuine) + len(tail) + 1))
    )
    budget = np.asarray(allowed, np.float64)
    point = _judge(descending, tail, np.ones(len(genuine)), np.ones(len(tail)), budget)
    if identities is None:
        samples = np.stack(
            [
                _judge(
                    descending,
                    tail,
                    generator.poisson(1, len(genuine)),
                    generator.poisson(1, len(tail)),
                    budget,
                )
                for _ in range(resamples)
            ]
        )
    else:
        samples = _over_identities(
            descending, tail, identities, order, budget, resamples, generator
        )
    genuine_people = identities.genuine if identities else np.arange(len(genuine))
    of_impostors = effective_people(identities.images) if identities else float(impostors)
    people = min(effective_people(np.bincount(genuine_people)), of_impostors)
    variance = samples[:, 0].var(0) * (people / max(people - 1, 1))
    # Thresholds hang on impostor pairs alone, rates on both.
    std = samples[:, 1].std(0) * math.sqrt(of_impostors / max(of_impostors - 2, 1))
    intervals = []
    for which, most in enumerate(allowed):
        rate, threshold = (float(value) for value in point[:, which])
        contributions = np.bincount(genuine_people, (genuine > threshold) - rate) / len(genuine)
        count = max(1, most)
        accepted = identities.tail[:count] if identities else np.arange(count)
        freedom = freedom_with_threshold(
            contributions[np.unique(genuine_people)], accepted, float(variance[which])
        )
        trials = independent_trials(
            rate, float(variance[which]), people, len(genuine), freedom, level
        )
        around = student_quantile(threshold_freedom(accepted, of_impostors), level) * float(
            std[which]
        )
        intervals.append(
            (rate_interval(rate, trials, level), (threshold - around, threshold + around))
        )
    return intervals


def _over_identities(
    descending: np.ndarray,
    tail: np.ndarray,
    identities: TailIdentities,
    order: np.ndarray,
    budget: np.ndarray,
    resamples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """(R, 2, targets) figures of replicates whose spread is that of other people."""
    count = len(identities.images)
    person = identities.genuine[order]
    known = identities.tail < count
    strangers, place = np.unique(identities.tail[~known], return_inverse=True)
    # What two people's pairs have in common is counted too often, all their images together.
    low, high = np.sort(identities.tail, axis=1)[:, [0, -1]].T
    couples = np.unique(low * (high.max(initial=0) + 1) + high, return_inverse=True)[1]
    images = identities.images / identities.images.sum()
    ones = np.ones(len(descending))
    both: list[np.ndarray] = []
    alone: list[np.ndarray] = []
    for _ in range(resamples):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        sides = np.empty(identities.tail.shape)
        sides[known] = drawn[identities.tail[known]]
        sides[~known] = generator.poisson(1, len(strangers))[place]
        weight = float(drawn @ images)
        # Both persons of a pair count, but for those of unknown identity, whose number is great.
        ways = identities.tail.shape[1]
        unknown = identities.against_unknown
        whole = unknown * weight ** (ways - 1) + (1 - unknown) * weight**ways
        weights = sides.prod(1) / max(whole, 1e-9)
        of_genuine = drawn[person]
        # With a handful of people nobody with two images may have been drawn: that says nothing.
        of_genuine = of_genuine if of_genuine.any() else ones
        both.append(_judge(descending, tail, of_genuine, weights, budget))
        if ways == 2:
            of_tail = generator.poisson(1, couples.max(initial=0) + 1)[couples]
            alone.append(_judge(descending, tail, ones, of_tail, budget))
    samples = np.stack(both)
    if not alone:
        return samples
    impostor_samples = np.stack(alone)
    mean, variance = samples.mean(0), samples.var(0)
    wanted = np.maximum(variance - 2 * impostor_samples.var(0), variance / 3)
    return mean + np.sqrt(wanted / np.where(variance > 0, variance, 1)) * (samples - mean)


def _judge(
    descending: np.ndarray,
    tail: np.ndarray,
    genuine_weights: np.ndarray,
    tail_weights: np.ndarray,
    budget: np.ndarray,
) -> np.ndarray:
    """(2, targets) TAR, and the threshold that the budget of weighted false accepts leads to."""
    used = np.cumsum(tail_weights, dtype=np.float64)
    # Half a pair of slack keeps whole weights from rounding past their budget.
    first_over = np.searchsorted(used, budget + 0.5, side="right").clip(max=len(tail) - 1)
    thresholds = tail[first_over]
    accepted = np.searchsorted(-descending, -thresholds, side="left")
    weight = np.concatenate([[0.0], np.cumsum(genuine_weights, dtype=np.float64)])
    return np.stack([weight[accepted] / weight[-1], thresholds])


def bootstrap_shares(
    hits: np.ndarray,
    identities: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Intervals of shares, people drawn with replacement (see ``rate_interval``).

    Args:
        hits: (N, K) bool or numbers whose means over N are the figures.
        identities: (N,) integers, whose each row is.
        resamples: replicates.
        seed: of the replicates.
        level: coverage aimed at.

    >>> [(low, high)] = bootstrap_shares(np.ones((4, 1)), np.array([0, 0, 1, 1]))
    >>> round(low, 3), high
    (0.158, 1.0)
    """
    _check_resamples(resamples)
    generator = np.random.default_rng(seed)
    person = np.unique(identities, return_inverse=True)[1]
    count = int(person.max()) + 1
    sums = np.zeros((count, hits.shape[1]))
    np.add.at(sums, person, hits)
    sizes = np.bincount(person)
    samples = np.empty((resamples, hits.shape[1]))
    for replicate in range(resamples):
        drawn = np.bincount(generator.integers(count, size=count), minlength=count)
        samples[replicate] = drawn @ sums / (drawn @ sizes)
    people = effective_people(sizes)
    rates, variances = hits.mean(0), samples.var(0) * (people / max(people - 1, 1))
    contributions = sums - sizes[:, None] * rates
    intervals = []
    for which, (rate, variance) in enumerate(zip(rates.tolist(), variances.tolist(), strict=True)):
        freedom = degrees_of_freedom(contributions[:, which])
        trials = independent_trials(rate, variance, people, len(hits), freedom, level)
        intervals.append(rate_interval(rate, trials, level))
    return intervals
