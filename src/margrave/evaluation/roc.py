"""ROC curves and cross-validated accuracy of genuine and impostor pairs.

Weights, counts and curves may have leading batch dimensions, so that one call evaluates many
bootstrap replicates, each with its own pair weights. An evaluation without a bootstrap has no
leading dimensions. A pair is accepted if its distance is strictly below the threshold (or its
score strictly above), so pairs of equal distance are accepted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.arange(0, 4, 0.01)
"""The 400 squared distances between unit vectors from which LFW's protocol selects a threshold."""
BIN_COUNT = len(THRESHOLDS) + 1
"""Number of bins of ``accept_bins``: one per threshold, and one for pairs that no threshold
accepts."""


def fold_of_pair(number_of_pairs: int, folds: int) -> np.ndarray:
    """(P,) the fold index of each pair.

    Folds are contiguous, and the first P mod ``folds`` of them contain one more pair.

    >>> fold_of_pair(5, 2)
    array([0, 0, 0, 1, 1])
    """
    sizes = np.full(folds, number_of_pairs // folds)
    sizes[: number_of_pairs % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def accept_bins(distances: np.ndarray) -> np.ndarray:
    """(P,) index of the lowest of the 400 thresholds that accept each distance; 400 if none do."""
    return np.searchsorted(THRESHOLDS, distances, side="right")


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Accuracy of each fold at the threshold that is best on the other folds.

    Attributes:
        fold_accuracy: (..., folds) in [0, 1].
        fold_threshold_index: (..., folds) each fold's threshold, as an index into ``THRESHOLDS``.
        far_and_tar: (..., folds, 2, 400) each fold's FAR, then its TAR, at each threshold. The FAR
            is 0 if the fold has no impostor pairs, the TAR if it has no genuine pairs.
    """

    fold_accuracy: np.ndarray
    fold_threshold_index: np.ndarray
    far_and_tar: np.ndarray


def cross_validate(counts: np.ndarray) -> CrossValidation:
    """Cross-validate histograms of pairs.

    Each fold's threshold is the one with the most correct decisions on the other folds; the lowest
    threshold wins ties.

    Args:
        counts: (..., folds, 2, 401) total weight of the impostor pairs, then of the genuine pairs,
            in each bin of ``accept_bins``.
    """
    total = counts.sum(-1, keepdims=True)
    accepted = np.cumsum(counts[..., :-1], axis=-1)
    # Accepted genuine pairs plus rejected impostor pairs.
    correct = accepted[..., 1, :] + total[..., 0, :] - accepted[..., 0, :]
    correct_on_others = correct.sum(-2, keepdims=True) - correct
    best = correct_on_others.argmax(-1)
    correct_at_best = np.take_along_axis(correct, best[..., None], -1)[..., 0]
    # 1e-300 avoids a division by zero in folds without pairs.
    fold_weight = np.maximum(total.sum((-1, -2)), 1e-300)
    return CrossValidation(
        correct_at_best / fold_weight, best, accepted / np.maximum(total, 1e-300)
    )


@dataclass(frozen=True, eq=False)
class Roc:
    """False and true accept rates at descending thresholds, for G distinct scores.

    Attributes:
        far: (..., G + 1) share of impostor pairs accepted, ascending from 0 to 1.
        tar: (..., G + 1) share of genuine pairs accepted.
        thresholds: (G + 1,) each point of the curve accepts scores strictly above its threshold;
            the last threshold is −inf.
    """

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray


def rank_pairs(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort scores in descending order.

    Returns:
        (P,) the indices that sort the scores, and (G,) the last position of each run of equal
        sorted scores.
    """
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.diff(scores[order], append=-np.inf))


def roc_curve(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> Roc:
    """The exact ROC, with one point per distinct score.

    Args:
        scores: (P,) similarities; higher means more similar.
        same: (P,) bool, whether each pair is genuine.
        weights: (..., P) weight of each pair; None gives every pair a weight of 1.

    Raises:
        ValueError: the lengths differ, a score is not finite, or genuine or impostor pairs are
            missing.

    >>> roc = roc_curve(np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False]))
    >>> roc.far.tolist(), roc.tar.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    scores, same = check_pairs(scores, same)
    order, ends = rank_pairs(scores)
    return weighted_roc(
        scores, same, order, ends, np.ones(len(same)) if weights is None else weights
    )


def weighted_roc(
    scores: np.ndarray, same: np.ndarray, order: np.ndarray, ends: np.ndarray, weights: np.ndarray
) -> Roc:
    """Like ``roc_curve``, for validated pairs; ``rank_pairs`` returns ``order`` and ``ends``."""
    ranked = np.take(weights, order, axis=-1)
    rates = []  # FAR, then TAR.
    for in_class in (~same[order], same[order]):
        cumulative = np.cumsum(ranked * in_class, axis=-1, dtype=np.float64)
        accepted = cumulative[..., ends] / cumulative[..., -1:]
        rates.append(np.concatenate([np.zeros_like(accepted[..., :1]), accepted], axis=-1))
    # Each threshold is the highest score that its point rejects.
    thresholds = np.append(scores[order][np.append(0, ends[:-1] + 1)], -np.inf)
    return Roc(rates[0], rates[1], thresholds)


def loosest_point(roc: Roc, far: float) -> np.ndarray:
    """(...,) the index of the ROC point with the lowest threshold whose FAR is at most ``far``."""
    return (roc.far <= far).sum(-1) - 1


def true_accept_rate(roc: Roc, far: float) -> np.ndarray:
    """(...,) TAR at the lowest threshold whose FAR is at most ``far``."""
    return np.take_along_axis(roc.tar, loosest_point(roc, far)[..., None], -1)[..., 0]


def nearest_points(
    roc: Roc, far_targets: Sequence[float], impostor_count: int, genuine_count: int
) -> np.ndarray:
    """(T,) the index of the ROC point whose FAR is nearest to each target.

    If two FARs are equally near, the larger one wins; among points with equal FAR, the one with the
    highest TAR. This is the rule of the published IJB results; the FAR may exceed the target. Only
    corners of the curve are considered, as in scikit-learn's ``roc_curve``, which the published
    results use.
    """
    # Compute corners from pair counts: with rates, rounding errors would create corners on straight
    # parts of the curve. Point 0 is left out here and always considered below, as in scikit-learn.
    false_accepts = np.rint(roc.far * impostor_count)[1:]
    true_accepts = np.rint(roc.tar * genuine_count)[1:]
    corner = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
    corner_points = (
        1 + np.flatnonzero(np.concatenate([[True], corner, [True]]))
        if len(false_accepts) > 1
        else [1]
    )
    # Descending, so that of equally near points argmin finds the one with the largest FAR and TAR.
    points = np.concatenate([[0], corner_points])[::-1].astype(np.int64)
    return np.array([points[np.abs(roc.far[points] - far).argmin()] for far in far_targets], int)


def area_under(roc: Roc) -> np.ndarray:
    """(...,) probability that a genuine pair scores above an impostor pair; ties count half."""
    return (np.diff(roc.far) * (roc.tar[..., 1:] + roc.tar[..., :-1])).sum(-1) / 2


def equal_error_rate(roc: Roc) -> np.ndarray:
    """(...,) the rate at which FAR = 1 − TAR, interpolated linearly between points of the ROC."""
    gap = roc.far - (1 - roc.tar)
    # The first point with FAR ≥ 1 − TAR. The EER lies between this point and the one before it.
    crossing = (gap < 0).sum(-1)[..., None]
    gap_after, gap_before = (np.take_along_axis(gap, crossing - step, -1) for step in (0, 1))
    far_after, far_before = (np.take_along_axis(roc.far, crossing - step, -1) for step in (0, 1))
    fraction = -gap_before / (gap_after - gap_before)
    return (far_before + fraction * (far_after - far_before))[..., 0]


def check_pairs(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Validate pairs; return (P,) float64 scores and (P,) bool ``same``.

    Raises:
        ValueError: the lengths differ, a score is not finite, or genuine or impostor pairs are
            missing.
    """
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same).astype(bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"scores has shape {scores.shape} and same {same.shape}; both must be one-dimensional "
            "and of equal length"
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise ValueError(
            f"{len(bad)} scores are not finite, the first is that of pair {bad[0]}; "
            "check for NaN or zero embeddings"
        )
    if same.all() or not same.any():
        raise ValueError(
            f"got {same.sum()} genuine and {(~same).sum()} impostor pairs; evaluation needs both"
        )
    return scores, same
