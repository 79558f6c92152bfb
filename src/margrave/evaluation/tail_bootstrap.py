"""Bootstrap intervals computed from all genuine scores and the tail, the largest impostor scores.

The scheme is that of :mod:`margrave.evaluation.pair_bootstrap`: identities are drawn with
replacement. A genuine pair's weight is the number of times its identity was drawn. An impostor
pair's weight is the product of these numbers for its two identities. The excess variance of the
products, which that module explains, is removed. A replicate's threshold is the first score, from
the largest, at which the cumulative weight of the tail's pairs exceeds the allowed false accepts.
Impostor pairs outside the tail matter only through their total weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.inputs import check_resamples
from margrave.evaluation.rate_intervals import (
    Interval,
    degrees_of_freedom,
    effective_identities,
    effective_sample_size,
    rate_interval,
    student_factor,
    student_quantile,
    tar_degrees_of_freedom,
    threshold_degrees_of_freedom,
)

MAX_OPERATIONS = 200_000_000
"""Largest number of scores to process in all replicates together. If there are very many scores,
fewer replicates are computed."""
MIN_RESAMPLES = 200
"""``MAX_OPERATIONS`` does not reduce the number of replicates below this number."""
TAIL_MARGIN = 1.5
"""Ratio of the tail's length to the allowed false accepts. A ratio above 1 ensures that the tail
contains the threshold of a replicate even if the tail's pairs get low weights."""
EXTRA_TAIL_SCORES = 64
"""Length that the tail has in addition to ``TAIL_MARGIN`` · allowed false accepts. With few allowed
false accepts, the total weight of the tail's pairs varies most."""


def tail_length(max_allowed: int) -> int:
    """The length of tail that the bootstrap needs for up to ``max_allowed`` false accepts.

    >>> tail_length(20)
    94
    """
    return int(TAIL_MARGIN * max_allowed) + EXTRA_TAIL_SCORES


@dataclass(frozen=True, eq=False)
class TailIdentities:
    """The identities of the pairs, as indices from 0 to I − 1; higher indices are distractors.

    Attributes:
        genuine: (G,) the identity of each genuine pair.
        tail: (T, 2) both identities of each impostor pair in the tail; (T, 1) if each score belongs
            to a single identity, as in identification.
        occurrences: (I,) how often each identity occurs in impostor pairs, or numbers about
            proportional to that, such as its number of images.
        distractor_share: share of all impostor pairs that contain a distractor.
    """

    genuine: np.ndarray
    tail: np.ndarray
    occurrences: np.ndarray
    distractor_share: float = 0.0


def small_sample_factor(identity_count: float, level: float = 0.95) -> float:
    """Small-sample correction: the factor by which intervals of few identities must be widened.

    With n identities, the bootstrap's variance is too small by the factor (n − 1) / n. In addition,
    intervals need quantiles of Student's t with n − 1 degrees of freedom instead of those of the
    normal distribution.

    Args:
        identity_count: n, see :func:`~margrave.evaluation.rate_intervals.effective_identities`.
        level: target coverage.

    >>> round(small_sample_factor(30), 3), round(small_sample_factor(5), 3)
    (1.061, 1.584)
    """
    degrees = max(1.0, identity_count - 1)
    return math.sqrt((degrees + 1) / degrees) * student_factor(degrees, level)


def bootstrap_tail(
    genuine: np.ndarray,
    tail: np.ndarray,
    impostor_count: int,
    allowed: Sequence[int],
    identities: TailIdentities | None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[Interval, Interval]]:
    """Intervals of the TAR and of the threshold for each number of allowed false accepts.

    Args:
        genuine: (G,) scores of genuine pairs.
        tail: (T,) the largest impostor scores, descending.
        impostor_count: total number of impostor pairs, including those outside the tail.
        allowed: the number of false accepts that each FAR target allows.
        identities: the pairs' identities; None resamples pairs.
        resamples: number of replicates; reduced, but not below 200, if there are very many pairs.
        seed: seed of the bootstrap.
        level: target coverage.

    Returns:
        For each of ``allowed``, the interval of the TAR and that of the threshold.

    Raises:
        ValueError: ``resamples`` is below 2.
    """
    check_resamples(resamples)
    generator = np.random.default_rng(seed)
    order = np.argsort(-genuine, kind="stable")
    sorted_genuine = genuine[order]
    resamples = min(resamples, max(MIN_RESAMPLES, MAX_OPERATIONS // (len(genuine) + len(tail) + 1)))
    budget = np.asarray(allowed, np.float64)
    point = _tar_and_threshold(
        sorted_genuine, tail, np.ones(len(genuine)), np.ones(len(tail)), budget
    )
    if identities is None:
        samples = np.stack(
            [
                _tar_and_threshold(
                    sorted_genuine,
                    tail,
                    generator.poisson(1, len(genuine)),
                    generator.poisson(1, len(tail)),
                    budget,
                )
                for _ in range(resamples)
            ]
        )
    else:
        samples = _resample_identities(
            sorted_genuine, tail, identities, order, budget, resamples, generator
        )
    genuine_labels = identities.genuine if identities else np.arange(len(genuine))
    # Effective numbers of identities: of the impostor pairs, and the smaller one of both classes.
    impostor_identities = (
        effective_identities(identities.occurrences) if identities else float(impostor_count)
    )
    min_identities = min(effective_identities(np.bincount(genuine_labels)), impostor_identities)
    tar_variance = samples[:, 0].var(0) * (min_identities / max(min_identities - 1, 1))
    # Thresholds depend on impostor pairs only. Their variance is multiplied by n / (n − 2),
    # about (n / (n − 1))², because both identities of an impostor pair are drawn.
    threshold_std = samples[:, 1].std(0) * math.sqrt(
        impostor_identities / max(impostor_identities - 2, 1)
    )
    intervals = []
    for target_index, max_false_accepts in enumerate(allowed):
        tar, threshold = (float(value) for value in point[:, target_index])
        # How much each identity's genuine pairs shift the TAR.
        contributions = np.bincount(genuine_labels, (genuine > threshold) - tar) / len(genuine)
        # If no false accept is allowed, use the pair at the threshold, the largest impostor score.
        num_accepted = max(1, max_false_accepts)
        accepted_labels = identities.tail[:num_accepted] if identities else np.arange(num_accepted)
        variance = float(tar_variance[target_index])
        degrees = tar_degrees_of_freedom(
            contributions[np.unique(genuine_labels)], accepted_labels, variance
        )
        sample_size = effective_sample_size(
            tar, variance, min_identities, len(genuine), degrees, level
        )
        threshold_degrees = threshold_degrees_of_freedom(accepted_labels, impostor_identities)
        half_width = student_quantile(threshold_degrees, level) * float(threshold_std[target_index])
        intervals.append(
            (
                rate_interval(tar, sample_size, level),
                (threshold - half_width, threshold + half_width),
            )
        )
    return intervals


def _resample_identities(
    sorted_genuine: np.ndarray,
    tail: np.ndarray,
    identities: TailIdentities,
    order: np.ndarray,
    budget: np.ndarray,
    resamples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """(R, 2, targets) TAR and threshold of replicates over identities, without excess variance.

    Args:
        sorted_genuine: (G,) genuine scores, descending.
        tail: (T,) the largest impostor scores, descending.
        identities: the pairs' identities, genuine pairs in their original order.
        order: (G,) the original index of each of the ``sorted_genuine`` scores.
        budget: (targets,) the total weight of false accepts that each target allows.
        resamples: number of replicates R.
        generator: the source of random numbers.
    """
    count = len(identities.occurrences)
    genuine_labels = identities.genuine[order]
    labeled = identities.tail < count
    distractors, distractor_index = np.unique(identities.tail[~labeled], return_inverse=True)
    # To measure the excess variance, pairs of identities are resampled. All scores of the same two
    # identities get the same weight.
    low, high = np.sort(identities.tail, axis=1)[:, [0, -1]].T
    identity_pair = np.unique(low * (high.max(initial=0) + 1) + high, return_inverse=True)[1]
    occurrence_shares = identities.occurrences / identities.occurrences.sum()
    ones = np.ones(len(sorted_genuine))
    identity_samples: list[np.ndarray] = []
    pair_samples: list[np.ndarray] = []
    for _ in range(resamples):
        multiplicities = np.bincount(generator.integers(count, size=count), minlength=count)
        side_weights = np.empty(identities.tail.shape)
        side_weights[labeled] = multiplicities[identities.tail[labeled]]
        side_weights[~labeled] = generator.poisson(1, len(distractors))[distractor_index]
        mean_weight = float(multiplicities @ occurrence_shares)
        # The total weight of all impostor pairs, relative to their number. The total weight of the
        # distractors is treated as constant, because there are so many.
        sides_per_score = identities.tail.shape[1]
        distractor_share = identities.distractor_share
        total = (
            distractor_share * mean_weight ** (sides_per_score - 1)
            + (1 - distractor_share) * mean_weight**sides_per_score
        )
        weights = side_weights.prod(1) / max(total, 1e-9)
        identity_samples.append(
            _tar_and_threshold(
                sorted_genuine, tail, multiplicities[genuine_labels], weights, budget
            )
        )
        if sides_per_score == 2:
            pair_weights = generator.poisson(1, identity_pair.max(initial=0) + 1)[identity_pair]
            pair_samples.append(
                _tar_and_threshold(sorted_genuine, tail, ones, pair_weights, budget)
            )
    samples = np.stack(identity_samples)
    if not pair_samples:
        return samples
    mean, variance = samples.mean(0), samples.var(0)
    # The variance v in the docstring of `pair_bootstrap`, which explains the factors 2 and 3.
    corrected = np.maximum(variance - 2 * np.stack(pair_samples).var(0), variance / 3)
    return mean + np.sqrt(corrected / np.where(variance > 0, variance, 1)) * (samples - mean)


def _tar_and_threshold(
    sorted_genuine: np.ndarray,
    tail: np.ndarray,
    genuine_weights: np.ndarray,
    tail_weights: np.ndarray,
    budget: np.ndarray,
) -> np.ndarray:
    """(2, targets) the TAR and the threshold at a budget of weighted false accepts.

    Args:
        sorted_genuine: (G,) genuine scores, descending.
        tail: (T,) the largest impostor scores, descending.
        genuine_weights: (G,) weights of the genuine pairs.
        tail_weights: (T,) weights of the tail's pairs.
        budget: (targets,) the total weight of false accepts that each target allows.
    """
    false_accepts = np.cumsum(tail_weights, dtype=np.float64)
    # The slack of half a pair keeps rounding errors from pushing integer weights past the budget.
    first_over = np.searchsorted(false_accepts, budget + 0.5, side="right").clip(max=len(tail) - 1)
    thresholds = tail[first_over]
    # With few pairs or identities, a replicate may contain no genuine pair. It then uses
    # each genuine pair once.
    if not genuine_weights.any():
        genuine_weights = np.ones(len(genuine_weights))
    accepted = np.searchsorted(-sorted_genuine, -thresholds, side="left")
    weight = np.concatenate([[0.0], np.cumsum(genuine_weights, dtype=np.float64)])
    return np.stack([weight[accepted] / weight[-1], thresholds])


def bootstrap_rates(
    hits: np.ndarray,
    identities: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[Interval]:
    """Intervals of K rates by ``rate_interval``, with variances from a bootstrap over identities.

    Args:
        hits: (N, K) bool or numbers; each rate is the mean of a column.
        identities: (N,) integers, the identity of each row of ``hits``.
        resamples: number of replicates.
        seed: seed of the bootstrap.
        level: target coverage.

    >>> [(low, high)] = bootstrap_rates(np.ones((4, 1)), np.array([0, 0, 1, 1]))
    >>> round(low, 3), high
    (0.158, 1.0)
    """
    check_resamples(resamples)
    generator = np.random.default_rng(seed)
    labels = np.unique(identities, return_inverse=True)[1]
    count = int(labels.max()) + 1
    sums = np.zeros((count, hits.shape[1]))
    np.add.at(sums, labels, hits)
    sizes = np.bincount(labels)
    samples = np.empty((resamples, hits.shape[1]))
    for replicate in range(resamples):
        multiplicities = np.bincount(generator.integers(count, size=count), minlength=count)
        samples[replicate] = multiplicities @ sums / (multiplicities @ sizes)
    effective_count = effective_identities(sizes)
    rates = hits.mean(0)
    variances = samples.var(0) * (effective_count / max(effective_count - 1, 1))
    contributions = sums - sizes[:, None] * rates
    intervals = []
    for column, (rate, variance) in enumerate(zip(rates.tolist(), variances.tolist(), strict=True)):
        degrees = degrees_of_freedom(contributions[:, column])
        sample_size = effective_sample_size(
            rate, variance, effective_count, len(hits), degrees, level
        )
        intervals.append(rate_interval(rate, sample_size, level))
    return intervals
