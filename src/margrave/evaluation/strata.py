"""Accuracy and TAR of pairs grouped by quality, at thresholds determined on all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.pairs import (
    FAR_TARGETS,
    cross_validate_distances,
    pair_distances,
    rates_at_far,
)
from margrave.evaluation.results import Figure
from margrave.evaluation.roc import THRESHOLDS, fold_of_pair, roc_curve


@dataclass(frozen=True)
class Stratum:
    """Pairs whose quality lies in [low, high), evaluated at the thresholds of all pairs.

    Attributes:
        low: lower limit of the quality, inclusive; None for the first stratum.
        high: upper limit of the quality, exclusive; None for the last stratum.
        pairs: number of pairs.
        genuine: number of genuine pairs.
        accuracy: share of correct decisions, each at the threshold of the pair's fold; None without
            pairs.
        far_targets: FAR targets; each determines one threshold on all pairs.
        tar: the stratum's TAR at each target's threshold; None without genuine pairs.
        far: the stratum's FAR at each target's threshold; None without impostor pairs.
    """

    low: float | None
    high: float | None
    pairs: int
    genuine: int
    accuracy: float | None
    far_targets: tuple[float, ...]
    tar: tuple[float | None, ...]
    far: tuple[float | None, ...]

    @property
    def label(self) -> str:
        """The quality range as text."""
        if self.low is None:
            return "any" if self.high is None else f"below {self.high:g}"
        return f"{self.low:g} and above" if self.high is None else f"{self.low:g} to {self.high:g}"

    def figures(self) -> tuple[Figure, ...]:
        """Accuracy and the TAR at each target's threshold, in the common result format."""
        stratum, counts = f"quality {self.label}", {"pairs": self.pairs, "genuine": self.genuine}
        return (
            Figure(metric="accuracy", value=self.accuracy, stratum=stratum, details=counts),
            *(
                Figure(metric="TAR", value=tar, at={"FAR": target}, stratum=stratum, realized=far)
                for target, tar, far in zip(self.far_targets, self.tar, self.far, strict=True)
            ),
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
    """Accuracy and TAR by quality; all strata use the thresholds determined on all pairs.

    Args:
        embeddings_a: (P, D) embeddings of one side of each pair, as for ``evaluate_pairs``.
        embeddings_b: (P, D) embeddings of the other side.
        same: (P,) bool, whether each pair is genuine.
        quality_of_pair: (P,) finite qualities, such as the lower of the two images' feature norms.
        edges: (k,) quality limits, strictly ascending, for k + 1 strata; the first stratum has no
            lower limit and the last no upper limit.
        folds: number of folds, at least 2.
        far_targets: FAR targets over all pairs.

    Raises:
        ValueError: the pairs are invalid (see ``evaluate_pairs``), the edges do not ascend, or
            ``quality_of_pair`` does not contain one finite quality per pair.
    """
    distances, same = pair_distances(embeddings_a, embeddings_b, same, folds)
    quality, edge_values = np.asarray(quality_of_pair, np.float64), np.asarray(edges, np.float64)
    if quality.shape != same.shape:
        raise ValueError(
            f"quality_of_pair must contain {len(same)} values, one per pair, got shape "
            f"{quality.shape}"
        )
    if len(bad := np.flatnonzero(~np.isfinite(quality))):
        raise ValueError(
            f"quality_of_pair must be finite, but pair {bad[0]} has {quality[bad[0]]}; leave out "
            "pairs of unknown quality"
        )
    if (
        edge_values.ndim != 1
        or not np.isfinite(edge_values).all()
        or (np.diff(edge_values) <= 0).any()
    ):
        raise ValueError(f"edges must be finite and strictly ascending, got {list(edges)}")
    validation = cross_validate_distances(distances, same, folds)
    correct = (
        distances < THRESHOLDS[validation.fold_threshold_index][fold_of_pair(len(same), folds)]
    ) == same
    # The cosine of two unit vectors is 1 minus half their squared distance.
    scores = 1 - distances / 2
    rates = rates_at_far(roc_curve(scores, same), int((~same).sum()), far_targets)
    limits = [None, *edge_values.tolist(), None]
    stratum_of_pair = np.searchsorted(edge_values, quality, side="right")
    strata = []
    for index in range(len(edge_values) + 1):
        in_stratum = stratum_of_pair == index
        genuine, impostor = scores[in_stratum & same], scores[in_stratum & ~same]
        strata.append(
            Stratum(
                low=limits[index],
                high=limits[index + 1],
                pairs=int(in_stratum.sum()),
                genuine=len(genuine),
                accuracy=_share(correct[in_stratum]),
                far_targets=tuple(rate.far_target for rate in rates),
                tar=tuple(_share(genuine > rate.threshold) for rate in rates),
                far=tuple(_share(impostor > rate.threshold) for rate in rates),
            )
        )
    return tuple(strata)


def _share(decisions: np.ndarray) -> float | None:
    """The share of True among the decisions; None if there are no decisions."""
    return float(decisions.mean()) if len(decisions) else None
