"""Verification of image pairs: LFW's 10-fold protocol, and the exact ROC curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from margrave.evaluation.accept_rates import AcceptRate, false_accepts_allowed
from margrave.evaluation.inputs import as_array, as_label_pairs, checked_targets
from margrave.evaluation.pair_bootstrap import PairIntervals, bootstrap_pairs, check_identities
from margrave.evaluation.results import Figure, PairScores, Result
from margrave.evaluation.roc import (
    BIN_COUNT,
    THRESHOLDS,
    CrossValidation,
    Roc,
    accept_bins,
    area_under,
    check_pairs,
    cross_validate,
    equal_error_rate,
    fold_of_pair,
    loosest_point,
    roc_curve,
)

MIN_PAIRS_FOR_INTERVALS = 20
"""A bootstrap needs at least this many genuine pairs and at least this many impostor pairs."""
MAX_STORED_SCORES = 100_000
"""With more pairs, a result does not store their scores."""
FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class PairResult:
    """The result of verifying pairs; accuracies and rates are in [0, 1].

    Attributes:
        rules: how ``accuracy`` is computed, in words.
        pairs: number of pairs.
        genuine: number of genuine pairs.
        folds: number of folds.
        accuracy: mean accuracy over folds.
        accuracy_std: population standard deviation of the accuracy over folds.
        fold_accuracy: each fold's accuracy at its threshold.
        fold_threshold: each fold's threshold, a squared distance; smaller distances are accepted.
        best_threshold: mean of ``fold_threshold``.
        best_cosine: ``best_threshold`` as a cosine, 1 − best_threshold / 2.
        roc_thresholds: the protocol's 400 squared distances.
        roc_tpr: mean over folds of the true accept rate at each of the 400 thresholds.
        roc_fpr: mean over folds of the false accept rate at each of the 400 thresholds.
        accept_rates: TAR at each FAR target over all pairs; thresholds are cosines.
        area_under_roc: exact AUC over all pairs.
        equal_error_rate: exact EER over all pairs.
        intervals: bootstrap intervals; None if not requested or if there are too few pairs
            (``MIN_PAIRS_FOR_INTERVALS``).
        scores: the scores of all pairs, for comparing models; None if there are too many pairs
            (``MAX_STORED_SCORES``).
    """

    rules: str
    pairs: int
    genuine: int
    folds: int
    accuracy: float
    accuracy_std: float
    fold_accuracy: tuple[float, ...]
    fold_threshold: tuple[float, ...]
    best_threshold: float
    best_cosine: float
    roc_thresholds: tuple[float, ...]
    roc_tpr: tuple[float, ...]
    roc_fpr: tuple[float, ...]
    accept_rates: tuple[AcceptRate, ...]
    area_under_roc: float
    equal_error_rate: float
    intervals: PairIntervals | None = None
    scores: PairScores | None = field(default=None, repr=False)

    def result(self, name: str = "", strata: Sequence[Figure] = ()) -> Result:
        """Convert to the common result format.

        Args:
            name: the name of the set of pairs.
            strata: metrics of subsets of the pairs, see ``Stratum.figures``.
        """
        intervals = self.intervals
        return Result(
            protocol="pairs",
            name=name,
            rules=self.rules,
            figures=(
                Figure(
                    metric="accuracy",
                    value=self.accuracy,
                    interval=intervals and intervals.accuracy,
                    threshold=self.best_cosine,
                ),
                Figure(metric="std of the folds' accuracies", value=self.accuracy_std),
                *(rate.figure() for rate in self.accept_rates),
                Figure(
                    metric="EER",
                    value=self.equal_error_rate,
                    interval=intervals and intervals.equal_error_rate,
                ),
                Figure(
                    metric="AUC",
                    value=self.area_under_roc,
                    interval=intervals and intervals.area_under_roc,
                    percent=False,
                ),
                *strata,
            ),
            counts={"pairs": self.pairs, "genuine": self.genuine, "folds": self.folds},
            curves={
                "folds": {"accuracy": self.fold_accuracy, "threshold": self.fold_threshold},
                "roc": {
                    "threshold": self.roc_thresholds,
                    "FAR": self.roc_fpr,
                    "TAR": self.roc_tpr,
                },
            },
            scores=self.scores,
        )


def unit_rows(embeddings: np.ndarray, name: str = "embeddings") -> np.ndarray:
    """Normalize (N, D) embeddings to unit length, in float64.

    Args:
        embeddings: (N, D), one embedding per row.
        name: the name of ``embeddings`` in error messages.

    Raises:
        ValueError: the array is not two-dimensional, or a row is zero or not finite.
    """
    embeddings = np.asarray(as_array(embeddings), dtype=np.float64)
    if embeddings.ndim != 2:
        raise ValueError(
            f"{name} must have shape (N, D), one row per image, got {embeddings.shape}"
        )
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"{len(bad)} rows of {name} (with indices {shown}) are zero, infinite or NaN, so they "
            "have no direction; check the model and these images"
        )
    return embeddings / lengths


def fuse_flips(embeddings: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """Add the raw embeddings of each image and of its flipped copy, and normalize the sum.

    Args:
        embeddings: (N, D) raw embeddings.
        flipped: (N, D) raw embeddings of the flipped images.

    Returns:
        (N, D) float64 unit rows.

    Raises:
        ValueError: the shapes differ, or a sum is zero or not finite.

    >>> fuse_flips(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])).tolist()
    [[0.6, 0.8]]
    """
    embeddings, flipped = as_array(embeddings), as_array(flipped)
    if embeddings.shape != flipped.shape:
        raise ValueError(
            f"embeddings and flipped must have the same shape, got {embeddings.shape} and "
            f"{flipped.shape}"
        )
    return unit_rows(embeddings + flipped, "embeddings + flipped")


def tar_at_far(
    scores: np.ndarray, same: np.ndarray, far_targets: Sequence[float] = FAR_TARGETS
) -> tuple[AcceptRate, ...]:
    """For each FAR target, the TAR at the lowest threshold whose FAR does not exceed the target.

    Args:
        scores: (P,) similarities; higher means more similar.
        same: (P,) bool, whether each pair is genuine.
        far_targets: FAR targets, each in (0, 1).

    Raises:
        ValueError: a target is not in (0, 1), a score is not finite, or genuine or impostor pairs
            are missing.

    >>> scores, same = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    >>> tar_at_far(scores, same, [0.5])[0].tar
    1.0
    """
    scores, same = check_pairs(scores, same)
    return rates_at_far(roc_curve(scores, same), int((~same).sum()), far_targets)


def rates_at_far(
    roc: Roc, impostor_count: int, far_targets: Sequence[float]
) -> tuple[AcceptRate, ...]:
    """Like ``tar_at_far``, but computed from a ROC curve and the number of impostor pairs."""
    rates = []
    for target in checked_targets(far_targets, "FAR"):
        point = int(loosest_point(roc, target))
        rates.append(
            AcceptRate(
                far_target=target,
                far=float(roc.far[point]),
                tar=float(roc.tar[point]),
                threshold=float(roc.thresholds[point]),
                too_few_impostors=false_accepts_allowed(target, impostor_count) < 1,
            )
        )
    return tuple(rates)


def evaluate_pairs(
    embeddings_a: np.ndarray,
    embeddings_b: np.ndarray,
    same: np.ndarray,
    folds: int = 10,
    identities: np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 1000,
    far_targets: Sequence[float] = FAR_TARGETS,
) -> PairResult:
    """Evaluate pairs by LFW's protocol.

    Embeddings are L2-normalized. A pair is accepted if its squared distance is strictly below the
    threshold. Folds are contiguous. The threshold of each fold is the one among 0, 0.01, …, 3.99
    that makes the most correct decisions on the other folds; the smallest threshold wins ties.

    Args:
        embeddings_a: (P, D) embeddings of one side of each pair; for flip fusion, apply
            ``fuse_flips`` first.
        embeddings_b: (P, D) embeddings of the other side.
        same: (P,) bool, whether each pair is genuine.
        folds: number of folds, at least 2.
        identities: (P, 2) labels of both sides, of any hashable type, for a bootstrap over
            identities; None resamples pairs.
        seed: seed of the bootstrap.
        resamples: number of bootstrap replicates; 0 for none. No intervals are computed if there
            are fewer than 20 genuine or fewer than 20 impostor pairs.
        far_targets: FAR targets of ``PairResult.accept_rates``.

    Raises:
        ValueError: the shapes differ, a row is zero or not finite, genuine or impostor pairs are
            missing, ``folds`` is below 2 or above the number of pairs, the identities contradict
            ``same`` or do not have shape (P, 2), a target is not in (0, 1), or ``resamples`` is 1.

    Source: Huang et al., "Labeled Faces in the Wild" (2007), image-restricted; the thresholds and
    tie rules are those of FaceNet's and InsightFace's code, which papers have used ever since.

    >>> rows = np.random.default_rng(0).standard_normal((40, 8))
    >>> same = np.arange(20) % 2 == 0
    >>> second = np.where(same[:, None], rows[:20], rows[20:])
    >>> evaluate_pairs(rows[:20], second, same, resamples=0).accuracy
    1.0
    """
    distances, same = pair_distances(embeddings_a, embeddings_b, same, folds)
    if identities is not None:
        identities = as_label_pairs(identities)
    validation = cross_validate_distances(distances, same, folds)
    thresholds = THRESHOLDS[validation.fold_threshold_index]
    roc = roc_curve(1 - distances / 2, same)
    accept_rates = rates_at_far(roc, int((~same).sum()), far_targets)
    intervals = None
    if resamples and min(same.sum(), (~same).sum()) >= MIN_PAIRS_FOR_INTERVALS:
        intervals = bootstrap_pairs(
            distances, same, folds, identities, far_targets, resamples, seed
        )
        accept_rates = tuple(
            replace(rate, interval=interval)
            for rate, interval in zip(accept_rates, intervals.true_accept_rates, strict=True)
        )
    elif identities is not None:
        # Without intervals, no bootstrap validates the identities.
        check_identities(identities, same)
    # A fold without genuine pairs has no TAR, and one without impostor pairs no FAR: exclude such a
    # fold from the mean.
    fold_and_class = fold_of_pair(len(same), folds) * 2 + same
    has_pairs = np.bincount(fold_and_class, minlength=folds * 2).reshape(folds, 2, 1) > 0
    roc_fpr, roc_tpr = np.mean(validation.far_and_tar, axis=0, where=has_pairs)
    return PairResult(
        rules=f"LFW {folds}-fold, squared distance, 400 thresholds, first best",
        pairs=len(same),
        genuine=int(same.sum()),
        folds=folds,
        accuracy=float(validation.fold_accuracy.mean()),
        accuracy_std=float(validation.fold_accuracy.std()),
        fold_accuracy=tuple(validation.fold_accuracy.tolist()),
        fold_threshold=tuple(thresholds.tolist()),
        best_threshold=float(thresholds.mean()),
        best_cosine=float(1 - thresholds.mean() / 2),
        roc_thresholds=tuple(THRESHOLDS.tolist()),
        roc_tpr=tuple(roc_tpr.tolist()),
        roc_fpr=tuple(roc_fpr.tolist()),
        accept_rates=accept_rates,
        area_under_roc=float(area_under(roc)),
        equal_error_rate=float(equal_error_rate(roc)),
        intervals=intervals,
        scores=_scores_to_store(distances, same, folds, identities),
    )


def _scores_to_store(
    distances: np.ndarray, same: np.ndarray, folds: int, identities: np.ndarray | None
) -> PairScores | None:
    """The scores for ``PairResult.scores``; None if there are too many pairs."""
    if len(same) > MAX_STORED_SCORES:
        return None
    labels = None if identities is None else tuple(map(tuple, np.asarray(identities).tolist()))
    return PairScores(
        distances=tuple(distances.tolist()),
        same=tuple(same.tolist()),
        folds=folds,
        identities=labels,
    )


def pair_distances(
    embeddings_a: np.ndarray, embeddings_b: np.ndarray, same: np.ndarray, folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validate ``evaluate_pairs``' arguments; return (P,) squared distances and (P,) bool same."""
    unit_a = unit_rows(embeddings_a, "embeddings_a")
    unit_b = unit_rows(embeddings_b, "embeddings_b")
    if unit_a.shape != unit_b.shape:
        raise ValueError(
            "embeddings_a and embeddings_b must have the same shape, got "
            f"{unit_a.shape} and {unit_b.shape}"
        )
    distances, same = check_pairs(np.square(unit_a - unit_b).sum(1), as_array(same))
    if not 2 <= folds <= len(same):
        raise ValueError(
            f"folds must be at least 2 and at most the number of pairs, got {folds} folds and "
            f"{len(same)} pairs"
        )
    return distances, same


def cross_validate_distances(
    distances: np.ndarray, same: np.ndarray, folds: int
) -> CrossValidation:
    """Cross-validate (P,) squared distances by LFW's protocol."""
    fold_and_class = fold_of_pair(len(same), folds) * 2 + same
    bins = fold_and_class * BIN_COUNT + accept_bins(distances)
    counts = np.bincount(bins, minlength=folds * 2 * BIN_COUNT)
    return cross_validate(counts.reshape(folds, 2, BIN_COUNT))
