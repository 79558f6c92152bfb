"""Who is it? Closed-set ranks, open-set identification, and the rules that published code followed.

Ties are resolved in the probe's favour: rank k is reached if the best mate scores at least as high
as the k-th most alike face of somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.score_blocks import Comparison, Progress, Rows, sweep
from margrave.evaluation.score_collectors import Genuine, Nearest, Tail
from margrave.evaluation.tail_bootstrap import TailIdentities, bootstrap_shares, bootstrap_tail


@dataclass(frozen=True)
class RankRate:
    """Share of probes that find a mate among the k most alike faces.

    Attributes:
        rank: k.
        rate: in [0, 1].
        interval: 95 % over people, None without a bootstrap.
    """

    rank: int
    rate: float
    interval: Interval | None = None


@dataclass(frozen=True)
class IdentificationResult:
    """What a closed-set identification found.

    Attributes:
        protocol: the rules.
        probes: with a mate in the gallery; the others are left out.
        probes_without_mate: how many those are.
        gallery: faces to choose from, distractors among them.
        distractors: gallery faces of nobody.
        ranks: the cumulative match characteristic at some ranks.
    """

    protocol: str
    probes: int
    probes_without_mate: int
    gallery: int
    distractors: int
    ranks: tuple[RankRate, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Searched:
    """(P,) score of each probe's best mate (−inf without), and (P, k) of others, descending."""

    mate: np.ndarray
    others: np.ndarray

    def reaches(self, rank: int) -> np.ndarray:
        """(P,) whether the best mate is among the ``rank`` most alike."""
        return np.isfinite(self.mate) & (self.mate >= self.others[:, rank - 1])


def _search(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    top_k: int,
    device: str,
    progress: Progress | None,
) -> _Searched:
    comparison = Comparison(probes, np.asarray(probe_labels), gallery, np.asarray(gallery_labels))
    genuine, nearest = Genuine(), Nearest(probes.shape[0], top_k)
    sweep(comparison, {"genuine": genuine, "nearest": nearest}, device=device, progress=progress)
    scores, rows, _ = genuine.sorted()
    mate = np.full(probes.shape[0], -np.inf)
    np.maximum.at(mate, rows, scores)
    return _Searched(mate, nearest.scores)


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
    """Closed-set identification, with several mates and with distractors (TinyFace).

    Args:
        probes: (P, D) embeddings.
        probe_labels: (P,) integers.
        gallery: (G, D).
        gallery_labels: (G,); negative ones are distractors.
        ranks: ascending.
        resamples: bootstrap replicates over the probes' people; 0 for none.
        seed: of the replicates.
        device: where products are computed.
        progress: called with (comparisons done, comparisons in all).

    Raises:
        ValueError: no probe has a mate, ranks below 1, embeddings that have no direction.

    Source: Cheng, Zhu, Gong, "Low-Resolution Face Recognition" (2018).

    >>> faces = np.eye(4)
    >>> result = evaluate_identification(faces[:2], np.array([0, 1]), faces, np.arange(4))
    >>> result.ranks[0].rate
    1.0
    """
    ranks = _checked_ranks(ranks)
    probe_labels, gallery_labels = np.asarray(probe_labels), np.asarray(gallery_labels)
    found = _search(probes, probe_labels, gallery, gallery_labels, max(ranks), device, progress)
    mated = np.isfinite(found.mate)
    if not mated.any():
        raise ValueError(
            "no probe has a mate in the gallery; do both sets of labels number the same people?"
        )
    hits = np.stack([found.reaches(rank)[mated] for rank in ranks], axis=1)
    return IdentificationResult(
        protocol="identification, closed set, any mate within rank",
        probes=int(mated.sum()),
        probes_without_mate=int((~mated).sum()),
        gallery=gallery.shape[0],
        distractors=int((gallery_labels < 0).sum()),
        ranks=rank_rates(hits, ranks, probe_labels[mated], resamples, seed),
    )


def rank_rates(
    hits: np.ndarray, ranks: Sequence[int], identities: np.ndarray, resamples: int, seed: int
) -> tuple[RankRate, ...]:
    """Shares of (N, ranks) hits, with intervals over people."""
    intervals: Sequence[Interval | None] = [None] * len(ranks)
    if resamples:
        intervals = bootstrap_shares(hits, identities, resamples, seed)
    return tuple(
        RankRate(int(rank), float(rate), interval)
        for rank, rate, interval in zip(ranks, hits.mean(0), intervals, strict=True)
    )


def _checked_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks = {list(ranks)}; give whole numbers from 1 on")
    return tuple(sorted(ranks))


@dataclass(frozen=True)
class OpenSetRate:
    """Open-set identification at one false positive identification rate.

    Attributes:
        target: FPIR asked for.
        fpir: share of probes without mate whose best score is above the threshold.
        tpir: share of probes with a mate that rank it first, above the threshold.
        threshold: of the score.
        too_few_probes: fewer than one false positive was allowed.
        interval: of ``tpir``, 95 % over people; None without a bootstrap.
    """

    target: float
    fpir: float
    tpir: float
    threshold: float
    too_few_probes: bool
    interval: Interval | None = None


@dataclass(frozen=True)
class OpenSetResult:
    """What an open-set identification against one gallery, or the mean of several, found.

    Attributes:
        protocol: the rules.
        mated: probes with a mate in the gallery.
        non_mated: probes without.
        gallery: how many templates are enrolled.
        ranks: closed-set rates over the mated probes.
        rates: at FPIR targets.
        galleries: of the single galleries, where this is their mean.
    """

    protocol: str
    mated: int
    non_mated: int
    gallery: int
    ranks: tuple[RankRate, ...]
    rates: tuple[OpenSetRate, ...]
    galleries: tuple[OpenSetResult, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


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
    """Open-set identification against one gallery: most probes of other galleries have no mate.

    The threshold for an FPIR target is the max(⌊target · N⌋, 1)-th largest of the best scores of
    the N probes without mate; a mated probe counts if its mate ranks first and scores above it.

    Args:
        probes: (P, D) embeddings.
        probe_labels: (P,) integers.
        gallery: (G, D).
        gallery_labels: (G,).
        fpir_targets: each in (0, 1).
        ranks: of the closed-set rates.
        resamples: bootstrap replicates over people; 0 for none.
        seed: of the replicates.
        device: where products are computed.
        progress: called with (comparisons done, comparisons in all).

    Raises:
        ValueError: no probes with, or none without a mate; a target outside (0, 1).

    Source: Maze et al. (2018), 1:N; InsightFace's ijb_evals.py for the threshold's place.
    """
    ranks = _checked_ranks(ranks)
    probe_labels = np.asarray(probe_labels)
    found = _search(
        probes, probe_labels, gallery, np.asarray(gallery_labels), max(ranks), device, progress
    )
    mated = np.isfinite(found.mate)
    if mated.all() or not mated.any():
        raise ValueError(
            f"{mated.sum()} probes have a mate in the gallery and {(~mated).sum()} have none; "
            "open-set identification needs both kinds"
        )
    first = np.where(found.mate > found.others[:, 0], found.mate, -np.inf)[mated]
    order = np.argsort(-found.others[~mated, 0], kind="stable")
    alarms = found.others[~mated, 0][order]
    places = [_place(target, len(alarms)) for target in fpir_targets]
    intervals: Sequence[Interval | None] = [None] * len(places)
    if resamples:
        people = np.unique(probe_labels, return_inverse=True)[1]
        identities = TailIdentities(
            genuine=people[mated],
            tail=people[~mated][order][:, None],
            images=np.bincount(people[~mated], minlength=people.max() + 1),
        )
        drawn = bootstrap_tail(first, alarms, len(alarms), places, identities, resamples, seed)
        intervals = [interval for interval, _ in drawn]
    hits = np.stack([found.reaches(rank)[mated] for rank in ranks], axis=1)
    return OpenSetResult(
        protocol="identification, open set, rank 1 above the threshold",
        mated=int(mated.sum()),
        non_mated=len(alarms),
        gallery=gallery.shape[0],
        ranks=rank_rates(hits, ranks, probe_labels[mated], resamples, seed),
        rates=tuple(
            OpenSetRate(
                target=float(target),
                fpir=float((alarms > alarms[place]).mean()),
                tpir=float((first > alarms[place]).mean()),
                threshold=float(alarms[place]),
                too_few_probes=target * len(alarms) < 1,
                interval=interval,
            )
            for target, place, interval in zip(fpir_targets, places, intervals, strict=True)
        ),
    )


def _place(target: float, count: int) -> int:
    if not 0 < target < 1:
        raise ValueError(f"FPIR target {target!r}; give a share between 0 and 1")
    return max(int(count * target) - 1, 0)


def mean_of_galleries(results: Sequence[OpenSetResult]) -> OpenSetResult:
    """The mean over galleries, as IJB's two are reported; intervals are averaged end by end.

    Both galleries are searched by the same probes, so their errors go together, and the mean of
    the ends is a fair interval of the mean.
    """

    def between(intervals: Sequence[Interval | None]) -> Interval | None:
        known = [interval for interval in intervals if interval is not None]
        if len(known) < len(results):
            return None
        return tuple(np.mean(known, axis=0).tolist())  # pyright: ignore[reportReturnType]

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return OpenSetResult(
        protocol=f"{results[0].protocol}, mean of {len(results)} galleries",
        mated=sum(result.mated for result in results),
        non_mated=sum(result.non_mated for result in results),
        gallery=sum(result.gallery for result in results),
        ranks=tuple(
            RankRate(
                each[0].rank, mean([one.rate for one in each]), between([o.interval for o in each])
            )
            for each in zip(*(result.ranks for result in results), strict=True)
        ),
        rates=tuple(
            OpenSetRate(
                target=each[0].target,
                fpir=mean([one.fpir for one in each]),
                tpir=mean([one.tpir for one in each]),
                threshold=mean([one.threshold for one in each]),
                too_few_probes=any(one.too_few_probes for one in each),
                interval=between([one.interval for one in each]),
            )
            for each in zip(*(result.rates for result in results), strict=True)
        ),
        galleries=tuple(results),
    )


@dataclass(frozen=True)
class DetectionRate:
    """Detection and identification rate at one false alarm rate (IJB-S, PFE's DIR_FAR).

    Attributes:
        far_target: share of probes without mate that may raise an alarm.
        far: what the threshold realises.
        threshold: alarms are raised at or above it.
        rates: share of mated probes within each rank and at or above the threshold.
        too_few_probes: fewer than one false alarm was allowed.
    """

    far_target: float
    far: float
    threshold: float
    rates: tuple[RankRate, ...]
    too_few_probes: bool = False


def detection_rates(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    *,
    far_targets: Sequence[float] = (0.01, 0.1),
    ranks: Sequence[int] = (1, 5, 10),
    resamples: int = 0,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[DetectionRate, ...]:
    """DIR at FAR by the rule of PFE's code, which IJB-S figures follow.

    The threshold is the round(FAR · N)-th largest best score of the N probes without mate (just
    above the largest where that is none), and is itself accepted. Rates are over the mated probes.

    Args:
        probes: (P, D).
        probe_labels: (P,).
        gallery: (G, D).
        gallery_labels: (G,).
        far_targets: each in (0, 1).
        ranks: from 1 on.
        resamples: bootstrap replicates over people at fixed thresholds; 0 for none.
        seed: of the replicates.
        device: where products are computed.
        progress: called with (comparisons done, comparisons in all).

    Raises:
        ValueError: no probes with, or none without a mate.
    """
    ranks = _checked_ranks(ranks)
    probe_labels = np.asarray(probe_labels)
    found = _search(
        probes, probe_labels, gallery, np.asarray(gallery_labels), max(ranks), device, progress
    )
    mated = np.isfinite(found.mate)
    if mated.all() or not mated.any():
        raise ValueError(
            f"{mated.sum()} probes with and {(~mated).sum()} without a mate; DIR at FAR needs both"
        )
    alarms = np.sort(found.others[~mated, 0])[::-1]
    results = []
    for far in far_targets:
        count = int(np.round(len(alarms) * far))
        threshold = float(alarms[count - 1]) if count else float(alarms[0]) + 1e-8
        above = found.mate[mated] >= threshold
        hits = np.stack([found.reaches(rank)[mated] & above for rank in ranks], axis=1)
        results.append(
            DetectionRate(
                far_target=float(far),
                far=float((alarms >= threshold).mean()),
                threshold=threshold,
                rates=rank_rates(hits, ranks, probe_labels[mated], resamples, seed),
                too_few_probes=far * len(alarms) < 1,
            )
        )
    return tuple(results)


def merged_gallery_rates(
    probes: Rows,
    probe_labels: np.ndarray,
    gallery: Rows,
    gallery_labels: np.ndarray,
    fpir_targets: Sequence[float] = (0.01, 0.1),
) -> tuple[OpenSetRate, ...]:
    """LEGACY: the figures AdaFace's and InsightFace's ijb_1n code print as TPIR at FPIR.

    Not the open-set protocol: every probe is enrolled, the threshold is the ⌈target · P⌉-th largest
    of all scores between different people, and rank is not asked for. For comparison with
    published tables only; see ``evaluate_open_set``.

    Raises:
        ValueError: a probe without mate.
    """
    probe_labels = np.asarray(probe_labels)
    comparison = Comparison(probes, probe_labels, gallery, np.asarray(gallery_labels))
    counts = [int(np.ceil(len(probe_labels) * target)) for target in fpir_targets]
    genuine, tail = Genuine(), Tail(max(counts))
    sweep(comparison, {"genuine": genuine, "tail": tail})
    scores, rows, _ = genuine.sorted()
    mate = np.full(len(probe_labels), -np.inf)
    np.maximum.at(mate, rows, scores)
    if np.isinf(mate).any():
        raise ValueError(
            f"probe {np.flatnonzero(np.isinf(mate))[0]} is not in the gallery; the legacy rule "
            "knows closed galleries only"
        )
    alarms = tail.sorted()[0]
    return tuple(
        OpenSetRate(
            target=float(target),
            fpir=float(target),
            tpir=float((mate > alarms[count - 1]).mean()),
            threshold=float(alarms[count - 1]),
            too_few_probes=False,
        )
        for target, count in zip(fpir_targets, counts, strict=True)
    )
