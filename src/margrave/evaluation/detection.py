"""Detection and identification rates (DIR), as reported for surveillance search (IJB-S)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.identification import RankRate, checked_ranks, rank_rates, search
from margrave.evaluation.inputs import as_labels, as_rows, check_resamples, checked_targets
from margrave.evaluation.results import Figure
from margrave.progress import Progress
from margrave.search.score_blocks import Rows


@dataclass(frozen=True)
class DetectionRate:
    """Detection and identification rates (DIR) at one false accept rate.

    Attributes:
        far_target: the target share of non-mated probes that are falsely accepted.
        far: the realized share, at ``threshold``.
        threshold: the lowest accepted score.
        rates: for each rank k, the share of mated probes whose mate is among the k most similar
            faces and scores at least ``threshold``.
        too_few_probes: True if the target allows fewer than one false accept.
    """

    far_target: float
    far: float
    threshold: float
    rates: tuple[RankRate, ...]
    too_few_probes: bool = False

    def figures(self) -> tuple[Figure, ...]:
        """The DIR at each rank, in the common result format."""
        return tuple(
            Figure(
                metric="DIR",
                value=rank.rate,
                at={"FAR": self.far_target, "rank": rank.rank},
                interval=rank.interval,
                threshold=self.threshold,
                realized=self.far,
                too_few=self.too_few_probes,
            )
            for rank in self.rates
        )


def detection_rates(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    far_targets: Sequence[float] = (0.01, 0.1),
    resamples: int = 0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[DetectionRate, ...]:
    """DIR at FAR, computed as in PFE's code, which published IJB-S results use.

    Each of the N non-mated probes has a best score; the threshold is the round(FAR · N)-th largest
    of these scores. If round(FAR · N) is 0, the threshold is just above the largest. Scores equal
    to the threshold are accepted. Rates are shares of the mated probes.

    Args:
        probes: (P, D) embeddings.
        probe_labels: (P,) labels of any hashable type.
        gallery: (G, D) embeddings.
        gallery_labels: (G,) labels.
        ranks: the ranks to report, each at least 1.
        far_targets: FAR targets, each in (0, 1).
        resamples: number of bootstrap replicates over identities, at fixed thresholds; 0 for none.
        seed: seed of the bootstrap.
        device: the device that computes the scores.
        progress: called with (comparisons done, total).

    Raises:
        ValueError: there are no mated or no non-mated probes, a target is not in (0, 1), a rank is
            below 1, or ``resamples`` is 1.

    Source: Shi and Jain, "Probabilistic Face Embeddings" (PFE, 2019), the authors' code.
    """
    ranks, targets = checked_ranks(ranks), checked_targets(far_targets, "FAR")
    if resamples:
        check_resamples(resamples)
    probes, gallery = as_rows(probes), as_rows(gallery)
    probe_labels, gallery_labels = as_labels(probe_labels, gallery_labels)
    scores = search(probes, probe_labels, gallery, gallery_labels, max(ranks), device, progress)
    # The score of a probe without a mate is −inf.
    mated = np.isfinite(scores.best_mate_scores)
    if mated.all() or not mated.any():
        raise ValueError(
            f"got {mated.sum()} mated and {(~mated).sum()} non-mated probes; DIR at FAR needs both"
        )
    non_mated_scores = np.sort(scores.non_mate_scores[~mated, 0])[::-1]
    results = []
    for far_target in targets:
        allowed = int(np.round(len(non_mated_scores) * far_target))
        # 1e-8 is the epsilon of PFE's code.
        threshold = (
            float(non_mated_scores[allowed - 1]) if allowed else float(non_mated_scores[0]) + 1e-8
        )
        accepted = scores.best_mate_scores[mated] >= threshold
        hits = np.stack([scores.within_rank(rank)[mated] & accepted for rank in ranks], axis=1)
        results.append(
            DetectionRate(
                far_target=far_target,
                far=float((non_mated_scores >= threshold).mean()),
                threshold=threshold,
                rates=rank_rates(hits, ranks, probe_labels[mated], resamples, seed),
                too_few_probes=far_target * len(non_mated_scores) < 1,
            )
        )
    return tuple(results)
