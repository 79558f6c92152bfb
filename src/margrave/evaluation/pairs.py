"""Verification of image pairs by LFW's 10-fold protocol, and by exact ROC beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from margrave.evaluation.accept_rates import AcceptRate
from margrave.evaluation.significance import PairIntervals, bootstrap_pairs, check_identities
from margrave.evaluation.verification import (
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

FEWEST_RESAMPLED = 20
FAR_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class PairResult:
    """What a verification of pairs found; accuracies and rates in [0, 1].

    Attributes:
        protocol: the rules behind ``accuracy``.
        pairs: how many pairs.
        genuine: how many show one identity.
        folds: how many folds.
        accuracy: mean over folds.
        accuracy_deviation: population standard deviation over folds.
        fold_accuracy: of each fold, at its threshold.
        fold_threshold: of each fold, the squared distance below which pairs are accepted.
        best_threshold: their mean.
        best_cosine: the same as a cosine, 1 − best_threshold / 2.
        roc_thresholds: the 400 squared distances of the protocol.
        roc_tpr: mean over folds of the true accept rate at each.
        roc_fpr: mean over folds of the false accept rate at each.
        accept_rates: TAR at FAR targets over all pairs; thresholds are cosines.
        area_under_roc: exact, over all pairs.
        equal_error_rate: exact, over all pairs.
        intervals: bootstrap intervals, None if not asked for or if there are too few pairs.
    """

    protocol: str
    pairs: int
    genuine: int
    folds: int
    accuracy: float
    accuracy_deviation: float
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

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


@dataclass(frozen=True)
class Stratum:
    """Pairs whose quality lies in [low, high), judged at the thresholds of all pairs.

    Attributes:
        low: lower edge, None for the first.
        high: upper edge, None for the last.
        pairs: how many pairs.
        genuine: how many show one identity.
        accuracy: each pair judged at its own fold's threshold; None without pairs.
        far_targets: of the whole set.
        tar: share of the stratum's genuine pairs accepted at each target's threshold, or None.
        far: share of its impostor pairs accepted there, or None.
    """

    low: float | None
    high: float | None
    pairs: int
    genuine: int
    accuracy: float | None
    far_targets: tuple[float, ...]
    tar: tuple[float | None, ...]
    far: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


def unit_rows(embeddings: np.ndarray, what: str = "embeddings") -> np.ndarray:
    """(N, D) float64 rows divided by their lengths.

    Raises:
        ValueError: another number of dimensions, rows that are not finite or zero, naming them.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2:
        raise ValueError(f"{what} {embeddings.shape}; give one row per image, (N, D)")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"{len(bad)} rows of {what} are zero, infinite or NaN and have no direction: {shown}; "
            "check the model and those images"
        )
    return embeddings / lengths


def fuse_flips(embeddings: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """(N, D) unit rows of the raw sum of each image's and its mirror image's embedding.

    Args:
        embeddings: (N, D), not normalised.
        flipped: (N, D), of the mirrored images, not normalised.

    Raises:
        ValueError: differing shapes; sums that are zero or not finite, naming the rows.

    >>> fuse_flips(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]])).tolist()
    [[0.6, 0.8]]
    """
    embeddings, flipped = np.asarray(embeddings), np.asarray(flipped)
    if embeddings.shape != flipped.shape:
        raise ValueError(f"embeddings {embeddings.shape} and flipped {flipped.shape} must agree")
    return unit_rows(embeddings + flipped, "embeddings + flipped")


def tar_at_far(
    scores: np.ndarray, same: np.ndarray, far_targets: Sequence[float] = FAR_TARGETS
) -> tuple[AcceptRate, ...]:
    """TAR at each FAR target, never exceeding it: see ``AcceptRate`` for the rule.

    Args:
        scores: (P,) similarities, greater meaning more alike.
        same: (P,) bool.
        far_targets: each in (0, 1).

    Raises:
        ValueError: a target outside (0, 1), scores that are not finite, only one class.

    >>> scores, same = np.array([0.9, 0.8, 0.3, 0.1]), np.array([True, False, True, False])
    >>> tar_at_far(scores, same, [0.5])[0].tar
    1.0
    """
    return _accept_rates(roc_curve(scores, same), int((~np.asarray(same)).sum()), far_targets)


def _accept_rates(roc: Roc, impostors: int, far_targets: Sequence[float]) -> tuple[AcceptRate, ...]:
    rates = []
    for target in far_targets:
        if not 0 < target < 1:
            raise ValueError(f"FAR target {target!r}; give a share between 0 and 1")
        point = int(loosest_point(roc, target))
        rates.append(
            AcceptRate(
                far_target=float(target),
                far=float(roc.far[point]),
                tar=float(roc.tar[point]),
                threshold=float(roc.scores[point]),
                too_few_impostors=target * impostors < 1,
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
    """Judge pairs by LFW's protocol.

    Rows are L2-normalised; a pair is accepted when the squared distance is strictly below the
    threshold; each fold (contiguous) is judged at the first of the thresholds 0, 0.01, ... 3.99
    with most correct decisions on the other folds.

    Args:
        embeddings_a: (P, D) one side of each pair, flips already fused.
        embeddings_b: (P, D) the other side.
        same: (P,) bool.
        folds: at least 2.
        identities: (P, 2) integers, who is on either side, for intervals over identities.
        seed: of the bootstrap.
        resamples: bootstrap replicates; 0 for none. Below 20 genuine or 20 impostor pairs there
            are no intervals: resampling so few says nothing.
        far_targets: FAR targets of ``accept_rates``.

    Raises:
        ValueError: shapes that disagree, zero rows or NaN, one class only, fewer pairs than folds.

    Source: Huang et al., "Labeled Faces in the Wild" (2007), image-restricted; the thresholds and
    tie rules are those of FaceNet's and InsightFace's code, which every paper since has used.

    >>> rows = np.random.default_rng(0).standard_normal((40, 8))
    >>> same = np.arange(20) % 2 == 0
    >>> other = np.where(same[:, None], rows[:20], rows[20:])
    >>> evaluate_pairs(rows[:20], other, same, resamples=0).accuracy
    1.0
    """
    distances, same = _distances(embeddings_a, embeddings_b, same, folds)
    found = _cross_validate(distances, same, folds)
    thresholds = THRESHOLDS[found.fold_threshold]
    roc = roc_curve(1 - distances / 2, same)
    accept_rates = _accept_rates(roc, int((~same).sum()), far_targets)
    intervals = None
    if resamples and min(same.sum(), (~same).sum()) >= FEWEST_RESAMPLED:
        intervals = bootstrap_pairs(
            distances, same, folds, identities, far_targets, resamples, seed
        )
        accept_rates = tuple(
            AcceptRate(**{**asdict(rate), "interval": interval})
            for rate, interval in zip(accept_rates, intervals.true_accept_rates, strict=True)
        )
    elif identities is not None:
        check_identities(identities, same)
    # A fold without genuine, or without impostor pairs, has no such rate.
    stratum = fold_of_pair(len(same), folds) * 2 + same
    held = np.bincount(stratum, minlength=folds * 2).reshape(folds, 2, 1) > 0
    roc_fpr, roc_tpr = np.mean(found.accepted, axis=0, where=held)
    return PairResult(
        protocol=f"LFW {folds}-fold, squared distance, 400 thresholds, first best",
        pairs=len(same),
        genuine=int(same.sum()),
        folds=folds,
        accuracy=float(found.fold_accuracy.mean()),
        accuracy_deviation=float(found.fold_accuracy.std()),
        fold_accuracy=tuple(found.fold_accuracy.tolist()),
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
    )


def evaluate_strata(
    embeddings_a: np.ndarray,
    embeddings_b: np.ndarray,
    same: np.ndarray,
    quality_of_pair: np.ndarray,
    edges: Sequence[float],
    folds: int = 10,
    far_targets: Sequence[float] = FAR_TARGETS,
) -> tuple[Stratum, ...]:
    """Accuracy and TAR by quality, all strata at the thresholds that all pairs together give.

    Args:
        embeddings_a: (P, D), as for ``evaluate_pairs``.
        embeddings_b: (P, D).
        same: (P,) bool.
        quality_of_pair: (P,) finite numbers, such as the lower feature norm of both images.
        edges: strictly ascending; k edges make k + 1 strata, open at either end.
        folds: at least 2.
        far_targets: FAR targets over all pairs.

    Raises:
        ValueError: as ``evaluate_pairs``; edges that do not ascend, quality of another length.
    """
    distances, same = _distances(embeddings_a, embeddings_b, same, folds)
    quality, cuts = np.asarray(quality_of_pair, np.float64), np.asarray(edges, np.float64)
    if quality.shape != same.shape or not np.isfinite(quality).all():
        raise ValueError(f"quality_of_pair {quality.shape}; give {len(same)} finite numbers")
    if cuts.ndim != 1 or not np.isfinite(cuts).all() or (np.diff(cuts) <= 0).any():
        raise ValueError(f"edges = {list(edges)}; give finite numbers that ascend strictly")
    found = _cross_validate(distances, same, folds)
    correct = (distances < THRESHOLDS[found.fold_threshold][fold_of_pair(len(same), folds)]) == same
    scores = 1 - distances / 2
    rates = _accept_rates(roc_curve(scores, same), int((~same).sum()), far_targets)
    bounds = [None, *cuts.tolist(), None]
    stratum_of = np.searchsorted(cuts, quality, side="right")
    strata = []
    for number in range(len(cuts) + 1):
        inside = stratum_of == number
        genuine, impostor = scores[inside & same], scores[inside & ~same]
        strata.append(
            Stratum(
                low=bounds[number],
                high=bounds[number + 1],
                pairs=int(inside.sum()),
                genuine=len(genuine),
                accuracy=_share(correct[inside]),
                far_targets=tuple(rate.far_target for rate in rates),
                tar=tuple(_share(genuine > rate.threshold) for rate in rates),
                far=tuple(_share(impostor > rate.threshold) for rate in rates),
            )
        )
    return tuple(strata)


def _share(decisions: np.ndarray) -> float | None:
    return float(decisions.mean()) if len(decisions) else None


def _distances(
    embeddings_a: np.ndarray, embeddings_b: np.ndarray, same: np.ndarray, folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) squared distances of unit rows and (P,) bool, checked."""
    sides = unit_rows(embeddings_a, "embeddings_a"), unit_rows(embeddings_b, "embeddings_b")
    if sides[0].shape != sides[1].shape:
        raise ValueError(
            f"embeddings_a {sides[0].shape} and embeddings_b {sides[1].shape} must agree"
        )
    distances, same = check_pairs(np.square(sides[0] - sides[1]).sum(1), same)
    if not 2 <= folds <= len(same):
        raise ValueError(
            f"{len(same)} pairs and {folds} folds; give at least 2 folds and a pair for each"
        )
    return distances, same


def _cross_validate(distances: np.ndarray, same: np.ndarray, folds: int) -> CrossValidation:
    stratum = fold_of_pair(len(same), folds) * 2 + same
    cells = np.bincount(stratum * 401 + accept_bins(distances), minlength=folds * 2 * 401)
    return cross_validate(cells.reshape(folds, 2, 401))
