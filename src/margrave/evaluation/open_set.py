"""Open-set identification: many probes have no mate, so matches must exceed a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from margrave.evaluation.identification import RankRate, checked_ranks, rank_rates, search
from margrave.evaluation.inputs import as_labels, as_rows, check_resamples, checked_targets
from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.results import Figure, Result
from margrave.evaluation.tail_bootstrap import TailIdentities, bootstrap_tail
from margrave.progress import Progress
from margrave.quantity import quantity
from margrave.search.collectors import Genuine, Tail
from margrave.search.score_blocks import Comparison, Rows, sweep


@dataclass(frozen=True)
class OpenSetRate:
    """Open-set identification at one false positive identification rate (FPIR).

    Attributes:
        target: the FPIR target.
        fpir: share of non-mated probes whose best score is above the threshold.
        tpir: share of mated probes whose mate ranks first and scores above the threshold.
        threshold: scores strictly above it are accepted.
        too_few_probes: True if the target allows fewer than one false positive.
        interval: the TPIR's 95 % confidence interval over identities; None without a bootstrap.
    """

    target: float
    fpir: float
    tpir: float
    threshold: float
    too_few_probes: bool
    interval: Interval | None = None

    def figure(self) -> Figure:
        """The TPIR in the common result format."""
        return Figure(
            metric="TPIR",
            value=self.tpir,
            at={"FPIR": self.target},
            interval=self.interval,
            threshold=self.threshold,
            realized=self.fpir,
            too_few=self.too_few_probes,
        )


@dataclass(frozen=True)
class OpenSetResult:
    """The result of an open-set identification against one gallery, or the mean over several.

    Of a mean, ``mated``, ``non_mated`` and ``gallery`` are sums over the galleries.

    Attributes:
        rules: the protocol's rules.
        mated: number of mated probes.
        non_mated: number of non-mated probes.
        gallery: number of enrolled templates.
        ranks: closed-set rates of the mated probes.
        rates: TPIR at each FPIR target.
        galleries: the result of each gallery, if this result is their mean; otherwise empty.
    """

    rules: str
    mated: int
    non_mated: int
    gallery: int
    ranks: tuple[RankRate, ...]
    rates: tuple[OpenSetRate, ...]
    galleries: tuple[OpenSetResult, ...] = ()

    def result(self, name: str = "") -> Result:
        """Convert to the common result format.

        Args:
            name: the name of the test set.
        """
        return Result(
            protocol="open_set",
            name=name,
            rules=self.rules,
            figures=(
                *(rank.figure() for rank in self.ranks),
                *(rate.figure() for rate in self.rates),
            ),
            counts={"mated": self.mated, "non_mated": self.non_mated, "gallery": self.gallery},
        )


def evaluate_open_set(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    *,
    fpir_targets: Sequence[float] = (0.01, 0.1),
    ranks: Sequence[int] = (1, 5, 10),
    resamples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> OpenSetResult:
    """Open-set identification against one gallery.

    The best scores of the N non-mated probes are sorted. The threshold for an FPIR target is the
    max(⌊target · N⌋, 1)-th largest of them. Only scores strictly above the threshold are accepted,
    so the FPIR is below the target. A mated probe is a hit if its mate ranks first and scores above
    the threshold. As in ijb_evals.py, a mate that ties with a non-mate does not rank first; the
    closed-set rates count such a tie as a hit.

    Args:
        probes: (P, D) embeddings.
        probe_labels: (P,) labels of any hashable type.
        gallery: (G, D) embeddings.
        gallery_labels: (G,) labels.
        fpir_targets: FPIR targets, each in (0, 1).
        ranks: ranks of the closed-set rates.
        resamples: number of bootstrap replicates over identities; 0 for none.
        seed: seed of the bootstrap.
        device: the device that computes the scores.
        progress: called with (comparisons done, total).

    Raises:
        ValueError: there are no mated or no non-mated probes, a target is not in (0, 1), a rank is
            below 1, or ``resamples`` is 1.

    Source: Maze et al. (2018), 1:N; InsightFace's ijb_evals.py for the threshold.
    """
    ranks, targets = checked_ranks(ranks), checked_targets(fpir_targets, "FPIR")
    if resamples:
        check_resamples(resamples)
    probes, gallery = as_rows(probes), as_rows(gallery)
    probe_labels, gallery_labels = as_labels(probe_labels, gallery_labels)
    matches = search(probes, probe_labels, gallery, gallery_labels, max(ranks), device, progress)
    mated = np.isfinite(matches.best_mate_scores)  # Without a mate, the score is −inf.
    if mated.all() or not mated.any():
        raise ValueError(
            f"{mated.sum()} probes have a mate in the gallery and {(~mated).sum()} have none; "
            "open-set identification needs both kinds"
        )
    mate_is_first = matches.best_mate_scores > matches.non_mate_scores[:, 0]
    rank_1_mate_scores = np.where(mate_is_first, matches.best_mate_scores, -np.inf)[mated]
    order = np.argsort(-matches.non_mate_scores[~mated, 0], kind="stable")
    non_mated_scores = matches.non_mate_scores[~mated, 0][order]
    non_mated_count = len(non_mated_scores)
    threshold_indices = [_threshold_index(target, non_mated_count) for target in targets]
    intervals: Sequence[Interval | None] = [None] * len(threshold_indices)
    if resamples:
        labels = np.unique(probe_labels, return_inverse=True)[1]
        # The bootstrap's tail consists of all non-mated scores. Each belongs to one identity, its
        # probe's, and ``occurrences`` counts each identity's non-mated probes.
        identities = TailIdentities(
            genuine=labels[mated],
            tail=labels[~mated][order][:, None],
            occurrences=np.bincount(labels[~mated], minlength=labels.max() + 1),
        )
        bootstrapped = bootstrap_tail(
            rank_1_mate_scores,
            non_mated_scores,
            non_mated_count,
            threshold_indices,
            identities,
            resamples,
            seed,
        )
        intervals = [interval for interval, _ in bootstrapped]
    hits = np.stack([matches.within_rank(rank)[mated] for rank in ranks], axis=1)
    return OpenSetResult(
        rules="identification, open set, rank 1 above the threshold",
        mated=int(mated.sum()),
        non_mated=non_mated_count,
        gallery=gallery.shape[0],
        ranks=rank_rates(hits, ranks, probe_labels[mated], resamples, seed),
        rates=tuple(
            OpenSetRate(
                target=target,
                fpir=float((non_mated_scores > non_mated_scores[index]).mean()),
                tpir=float((rank_1_mate_scores > non_mated_scores[index]).mean()),
                threshold=float(non_mated_scores[index]),
                too_few_probes=target * non_mated_count < 1,
                interval=interval,
            )
            for target, index, interval in zip(targets, threshold_indices, intervals, strict=True)
        ),
    )


def _threshold_index(target: float, count: int) -> int:
    """The index of an FPIR target's threshold among ``count`` non-mated scores, descending.

    Only scores strictly above the threshold are false positives, so there are at most as many as
    this index, one fewer than the target allows. The official IJB code counts like this.
    """
    return max(int(count * target) - 1, 0)


def mean_of_galleries(results: Sequence[OpenSetResult]) -> OpenSetResult:
    """The mean over galleries, as reported for IJB's two galleries.

    Counts are summed. The ends of the intervals are averaged: the same probes search all galleries,
    so the galleries' errors are strongly correlated, and the mean is hardly more certain than the
    rate of a single gallery.
    """

    def mean_interval(intervals: Sequence[Interval | None]) -> Interval | None:
        available = [interval for interval in intervals if interval is not None]
        if len(available) < len(results):
            return None
        return tuple(np.mean(available, axis=0).tolist())  # pyright: ignore[reportReturnType]

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return OpenSetResult(
        rules=f"{results[0].rules}, mean of {len(results)} galleries",
        mated=sum(result.mated for result in results),
        non_mated=sum(result.non_mated for result in results),
        gallery=sum(result.gallery for result in results),
        ranks=tuple(
            RankRate(
                ranks[0].rank,
                mean([rank.rate for rank in ranks]),
                mean_interval([rank.interval for rank in ranks]),
            )
            for ranks in zip(*(result.ranks for result in results), strict=True)
        ),
        rates=tuple(
            OpenSetRate(
                target=rates[0].target,
                fpir=mean([rate.fpir for rate in rates]),
                tpir=mean([rate.tpir for rate in rates]),
                threshold=mean([rate.threshold for rate in rates]),
                too_few_probes=any(rate.too_few_probes for rate in rates),
                interval=mean_interval([rate.interval for rate in rates]),
            )
            for rates in zip(*(result.rates for result in results), strict=True)
        ),
        galleries=tuple(results),
    )


def merged_gallery_rates(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    fpir_targets: Sequence[float] = (0.01, 0.1),
) -> tuple[OpenSetRate, ...]:
    """LEGACY: the values that AdaFace's and InsightFace's ijb_1n code prints as TPIR at FPIR.

    This is not the open-set protocol: the gallery is IJB's two galleries merged, so every one of
    the P probes has a mate. The threshold is the ⌈target · P⌉-th largest score between different
    identities, and the mate need not rank first. Use these values only for comparison with
    published tables, otherwise ``evaluate_open_set``.

    Args:
        probes: (P, D) embeddings.
        probe_labels: (P,) labels of any hashable type.
        gallery: (G, D) embeddings.
        gallery_labels: (G,) labels.
        fpir_targets: FPIR targets, each in (0, 1).

    Returns:
        The rates at each target; their ``fpir`` is the target itself, as the FPIR is not measured.

    Raises:
        ValueError: a probe has no mate, there are too few impostor pairs for a target, or a target
            is not in (0, 1).
    """
    targets = checked_targets(fpir_targets, "FPIR")
    probes, gallery = as_rows(probes), as_rows(gallery)
    probe_labels, gallery_labels = as_labels(probe_labels, gallery_labels)
    comparison = Comparison(probes, probe_labels, gallery, gallery_labels)
    threshold_ranks = [int(np.ceil(len(probe_labels) * target)) for target in targets]
    genuine, tail = Genuine(), Tail(max(threshold_ranks))
    sweep(comparison, {"genuine": genuine, "tail": tail})
    genuine_scores, probe_indices, _ = genuine.sorted()
    mate_scores = np.full(len(probe_labels), -np.inf)
    np.maximum.at(mate_scores, probe_indices, genuine_scores)
    if np.isinf(mate_scores).any():
        raise ValueError(
            f"probe {np.flatnonzero(np.isinf(mate_scores))[0]} has no mate in the gallery; the "
            "legacy rule requires a mate for every probe"
        )
    impostor_scores = tail.sorted()[0]
    if max(threshold_ranks) > len(impostor_scores):
        raise ValueError(
            f"FPIR {max(targets)} needs {quantity(max(threshold_ranks), 'score')} between different"
            f" identities, but there are {len(impostor_scores)}; pass lower targets or more gallery"
            " faces of other identities"
        )
    return tuple(
        OpenSetRate(
            target=target,
            fpir=target,
            tpir=float((mate_scores > impostor_scores[threshold_rank - 1]).mean()),
            threshold=float(impostor_scores[threshold_rank - 1]),
            too_few_probes=False,
        )
        for target, threshold_rank in zip(targets, threshold_ranks, strict=True)
    )
