"""Closed-set identification: is a mate among the k most similar gallery faces?

Ties count as hits: a probe is a hit at rank k if its best mate's score is at least the k-th highest
score of the other identities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.inputs import as_labels, as_rows, check_resamples
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.results import Figure, Result
from margrave.evaluation.tail_bootstrap import bootstrap_rates
from margrave.progress import Progress
from margrave.search.collectors import Genuine, Nearest
from margrave.search.score_blocks import Comparison, Rows, sweep


@dataclass(frozen=True)
class RankRate:
    """Share of probes with a mate among the k most similar faces.

    Attributes:
        rank: k.
        rate: the share, in [0, 1].
        interval: the 95 % confidence interval over identities; None without a bootstrap.
    """

    rank: int
    rate: float
    interval: Interval | None = None

    def figure(self, **at: float | str) -> Figure:
        """Convert to the common result format.

        Args:
            at: further conditions under which the rate was measured, such as the gallery.
        """
        return Figure(
            metric="identification rate",
            value=self.rate,
            at={"rank": self.rank, **at},
            interval=self.interval,
        )


@dataclass(frozen=True)
class IdentificationResult:
    """The result of a closed-set identification.

    Attributes:
        rules: the protocol's rules.
        probes: number of mated probes, which have a mate in the gallery.
        probes_without_mate: number of non-mated probes, which the rates exclude.
        gallery: number of gallery faces, including distractors.
        distractors: number of gallery faces of unknown identity.
        ranks: the identification rate at each requested rank (cumulative match characteristic).
    """

    rules: str
    probes: int
    probes_without_mate: int
    gallery: int
    distractors: int
    ranks: tuple[RankRate, ...]

    def result(self, name: str = "") -> Result:
        """Convert to the common result format.

        Args:
            name: the name of the test set.
        """
        count_names = ("probes", "probes_without_mate", "gallery", "distractors")
        return Result(
            protocol="identification",
            name=name,
            rules=self.rules,
            figures=tuple(rank.figure() for rank in self.ranks),
            counts={count_name: getattr(self, count_name) for count_name in count_names},
        )


@dataclass(frozen=True, eq=False)
class SearchScores:
    """Each probe's scores with its best mate and with its most similar non-mates.

    Attributes:
        best_mate_scores: (P,) score of each probe with its best mate; −inf if it has no mate.
        non_mate_scores: (P, k) each probe's k highest scores with other identities, descending.
    """

    best_mate_scores: np.ndarray
    non_mate_scores: np.ndarray

    def within_rank(self, rank: int) -> np.ndarray:
        """(P,) True where the best mate is among the ``rank`` most similar faces."""
        return np.isfinite(self.best_mate_scores) & (
            self.best_mate_scores >= self.non_mate_scores[:, rank - 1]
        )


def search(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    top_k: int,
    device: str,
    progress: Progress | None,
) -> SearchScores:
    """Search the gallery for each probe's best mate and ``top_k`` most similar non-mates."""
    comparison = Comparison(probes, probe_labels, gallery, gallery_labels)
    genuine, nearest = Genuine(), Nearest(probes.shape[0], top_k)
    sweep(comparison, {"genuine": genuine, "nearest": nearest}, device=device, progress=progress)
    mate_scores, probe_indices, _ = genuine.sorted()
    best_mate_scores = np.full(probes.shape[0], -np.inf)
    np.maximum.at(best_mate_scores, probe_indices, mate_scores)
    return SearchScores(best_mate_scores, nearest.scores)


def evaluate_identification(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    *,
    ranks: Sequence[int] = (1, 5, 20),
    resamples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> IdentificationResult:
    """Closed-set identification rates: the share of probes with a mate within each rank.

    Probes without a mate are excluded. A probe may have several mates, and the gallery may contain
    distractors.

    Args:
        probes: (P, D) embeddings.
        probe_labels: (P,) labels of any hashable type.
        gallery: (G, D) embeddings.
        gallery_labels: (G,) labels; None and negative numbers mark distractors.
        ranks: the ranks to report, each at least 1.
        resamples: number of bootstrap replicates over the probes' identities; 0 for none.
        seed: seed of the bootstrap.
        device: the device that computes the scores.
        progress: called with (comparisons done, total).

    Raises:
        ValueError: no probe has a mate, a rank is below 1, ``resamples`` is 1, or an embedding is
            zero or not finite.

    Source: Cheng, Zhu, Gong, "Low-Resolution Face Recognition" (2018).

    >>> faces = np.eye(4)
    >>> result = evaluate_identification(faces[:2], np.array([0, 1]), faces, np.arange(4))
    >>> result.ranks[0].rate
    1.0
    """
    ranks = checked_ranks(ranks)
    if resamples:
        check_resamples(resamples)
    probes, gallery = as_rows(probes), as_rows(gallery)
    probe_labels, gallery_labels = as_labels(probe_labels, gallery_labels)
    scores = search(probes, probe_labels, gallery, gallery_labels, max(ranks), device, progress)
    mated = np.isfinite(scores.best_mate_scores)
    if not mated.any():
        raise ValueError(
            "no probe has a mate in the gallery; check that probe_labels and gallery_labels use "
            "the same labels"
        )
    hits = np.stack([scores.within_rank(rank)[mated] for rank in ranks], axis=1)
    return IdentificationResult(
        rules="identification, closed set, any mate within rank",
        probes=int(mated.sum()),
        probes_without_mate=int((~mated).sum()),
        gallery=gallery.shape[0],
        distractors=int((gallery_labels < 0).sum()),
        ranks=rank_rates(hits, ranks, probe_labels[mated], resamples, seed),
    )


def rank_rates(
    hits: np.ndarray, ranks: Sequence[int], identities: np.ndarray, resamples: int, seed: int
) -> tuple[RankRate, ...]:
    """The identification rate at each rank, with its interval.

    Args:
        hits: (P, R) bool, True where a probe is a hit at a rank.
        ranks: the R ranks, one per column of ``hits``.
        identities: (P,) the identity of each probe.
        resamples: number of bootstrap replicates over identities; 0 for none.
        seed: seed of the bootstrap.
    """
    intervals: Sequence[Interval | None] = [None] * len(ranks)
    if resamples:
        intervals = bootstrap_rates(hits, identities, resamples, seed)
    return tuple(
        RankRate(int(rank), float(rate), interval)
        for rank, rate, interval in zip(ranks, hits.mean(0), intervals, strict=True)
    )


def checked_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """Check that ranks are integers of at least 1; return them sorted."""
    if not len(ranks) or any(rank < 1 or rank != int(rank) for rank in ranks):
        raise ValueError(f"ranks must be integers of at least 1, got {list(ranks)}")
    return tuple(sorted(int(rank) for rank in ranks))
