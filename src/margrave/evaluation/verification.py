"""What is counted about pairs that are the same identity (genuine) or not (impostor).

Everything here takes leading dimensions R of weighted copies of the pairs, so that a bootstrap is
one call; a plain evaluation has none. Two rules hold throughout: a pair is accepted when its
distance is strictly below the threshold (its score strictly above), and pairs of equal distance are
accepted together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THRESHOLDS = np.arange(0, 4, 0.01)
"""The 400 squared distances between unit vectors among which the LFW protocol chooses."""


def fold_of_pair(number_of_pairs: int, folds: int) -> np.ndarray:
    """(P,) the contiguous fold of each pair; the first P mod folds have one pair more.

    >>> fold_of_pair(5, 2)
    array([0, 0, 0, 1, 1])
    """
    sizes = np.full(folds, number_of_pairs // folds)
    sizes[: number_of_pairs % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def accept_bins(distances: np.ndarray) -> np.ndarray:
    """(P,) the first of the 400 thresholds that accepts each distance; 400 if none does."""
    return np.searchsorted(THRESHOLDS, distances, side="right")


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Accuracy of each fold at the threshold that is best on the other folds.

    Attributes:
        fold_accuracy: (..., folds).
        fold_threshold: (..., folds) positions in ``THRESHOLDS``.
        accepted: (..., folds, 2, 400) share of the fold's impostor, then genuine pairs accepted at
            each threshold (0 in a fold that has none).
    """

    fold_accuracy: np.ndarray
    fold_threshold: np.ndarray
    accepted: np.ndarray


def cross_validate(counts: np.ndarray) -> CrossValidation:
    """Judge histograms (..., folds, 2, 401): weight per fold, impostor or genuine, accept bin.

    The threshold is the first of those with most correct decisions.
    """
    total = counts.sum(-1, keepdims=True)
    below = np.cumsum(counts[..., :-1], axis=-1)
    correct = below[..., 1, :] + total[..., 0, :] - below[..., 0, :]
    elsewhere = correct.sum(-2, keepdims=True) - correct
    chosen = elsewhere.argmax(-1)
    hits = np.take_along_axis(correct, chosen[..., None], -1)[..., 0]
    judged = np.maximum(total.sum((-1, -2)), 1e-300)
    return CrossValidation(hits / judged, chosen, below / np.maximum(total, 1e-300))


@dataclass(frozen=True, eq=False)
class Roc:
    """False and true accept rates as the threshold loosens, from accepting none to accepting all.

    Attributes:
        far: (..., G + 1) share of impostor pairs accepted, ascending from 0 to 1.
        tar: (..., G + 1) share of genuine pairs accepted.
        scores: (G + 1,) the score that each point stays strictly above; the last is −inf.
    """

    far: np.ndarray
    tar: np.ndarray
    scores: np.ndarray


def rank_pairs(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) order from most to least alike, and (G,) the last place of each run of equal scores."""
    order = np.argsort(-scores, kind="stable")
    return order, np.flatnonzero(np.diff(scores[order], append=-np.inf))


def roc_curve(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> Roc:
    """The exact ROC: a point per distinct score.

    Args:
        scores: (P,) similarities, greater meaning more alike.
        same: (P,) bool, both classes present.
        weights: (..., P) weight of each pair; None for 1.

    Raises:
        ValueError: differing lengths, scores that are not finite, only one class.

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
    """``roc_curve`` of checked pairs whose order is known."""
    ranked = np.take(weights, order, axis=-1)
    rates = []
    for of_class in (~same[order], same[order]):
        total = np.cumsum(ranked * of_class, axis=-1, dtype=np.float64)
        accepted = total[..., ends] / total[..., -1:]
        rates.append(np.concatenate([np.zeros_like(accepted[..., :1]), accepted], axis=-1))
    loosest_refused = np.append(scores[order][np.append(0, ends[:-1] + 1)], -np.inf)
    return Roc(rates[0], rates[1], loosest_refused)


def loosest_point(roc: Roc, far: float) -> np.ndarray:
    """(...,) position on the ROC of the loosest threshold whose realised FAR is at most ``far``."""
    return (roc.far <= far).sum(-1) - 1


def true_accept_rate(roc: Roc, far: float) -> np.ndarray:
    """(...,) TAR at the loosest threshold whose realised FAR is at most ``far``."""
    return np.take_along_axis(roc.tar, loosest_point(roc, far)[..., None], -1)[..., 0]


def nearest_points(
    roc: Roc, far_targets: Sequence[float], impostors: int, genuine: int
) -> np.ndarray:
    """(T,) positions on the ROC whose FAR is nearest to each target, the larger of two as near.

    The rule of the published IJB figures: it may exceed the target. As there, only corners of the
    curve are looked at, and of points of equal FAR the one with the highest TAR.
    """
    # Whole numbers of pairs: of shares, rounding makes corners where the curve is straight.
    false, true = np.rint(roc.far * impostors)[1:], np.rint(roc.tar * genuine)[1:]
    corner = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    inner = 1 + np.flatnonzero(np.concatenate([[True], corner, [True]])) if len(false) > 1 else [1]
    points = np.concatenate([[0], inner])[::-1].astype(np.int64)
    return np.array([points[np.abs(roc.far[points] - far).argmin()] for far in far_targets], int)


def area_under(roc: Roc) -> np.ndarray:
    """(...,) probability that a genuine pair scores above an impostor pair, ties counting half."""
    return (np.diff(roc.far) * (roc.tar[..., 1:] + roc.tar[..., :-1])).sum(-1) / 2


def equal_error_rate(roc: Roc) -> np.ndarray:
    """(...,) where FAR = 1 − TAR on the ROC, its points joined by straight lines."""
    gap = roc.far - (1 - roc.tar)
    after = (gap < 0).sum(-1)[..., None]
    gap_after, gap_before = (np.take_along_axis(gap, after - late, -1) for late in (0, 1))
    far_after, far_before = (np.take_along_axis(roc.far, after - late, -1) for late in (0, 1))
    share = -gap_before / (gap_after - gap_before)
    return (far_before + share * (far_after - far_before))[..., 0]


def check_pairs(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) float64 scores and (P,) bool; ValueError if they are not fit for evaluation."""
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same).astype(bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise ValueError(
            f"scores {scores.shape} and same {same.shape} must be one-dimensional and equally long"
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores))
        raise ValueError(
            f"{len(bad)} scores are not finite, the first at pair {bad[0]}; "
            "look for NaN or zero embeddings"
        )
    if same.all() or not same.any():
        raise ValueError(
            f"{same.sum()} genuine and {(~same).sum()} impostor pairs; evaluation needs both"
        )
    return scores, same
