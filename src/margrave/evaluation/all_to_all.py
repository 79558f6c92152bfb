"""Everybody against everybody, and against millions of distractors (MegaFace, Trillion-Pairs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from margrave.distributed import World
from margrave.evaluation.accept_rates import AcceptRate, accept_rates, false_accepts_allowed
from margrave.evaluation.identification import RankRate, rank_rates
from margrave.evaluation.score_blocks import (
    MEMORY,
    Collector,
    Comparison,
    Progress,
    Rows,
    State,
    sweep,
)
from margrave.evaluation.score_collectors import Genuine, Nearest, Tail
from margrave.evaluation.tail_bootstrap import TailIdentities, tail_length

MOST_KEPT = 1 << 25
"""The longest tail of impostor scores: 20 bytes each."""
MOST_GENUINE = 1 << 26
"""The most genuine scores, likewise."""


class Keeper(Protocol):
    """Where an interrupted evaluation leaves its state; see ``margrave.inference``."""

    def load(self, name: str) -> State | None:
        """What was kept under the name."""
        ...

    def offer(self, name: str, told: Callable[[], State]) -> None:
        """Keep what ``told`` tells, if it is time."""
        ...


@dataclass(frozen=True)
class AllToAllResult:
    """What comparing everybody with everybody found.

    Attributes:
        protocol: the rules.
        images: labelled faces.
        identities: among them.
        distractors: faces of unknown people.
        genuine: pairs of one person.
        impostors: pairs that a false accept could come from.
        verification: TAR where FAR, over all impostor pairs, does not exceed each target.
        ranks: share of ordered genuine pairs (probe, mate) whose mate is within the k most alike
            faces, all distractors being in the gallery; empty without distractors.
        identification: the same at rank 1 and above the threshold that at most a share of all
            probes' most alike distractors exceed; empty without distractors.
    """

    protocol: str
    images: int
    identities: int
    distractors: int
    genuine: int
    impostors: int
    verification: tuple[AcceptRate, ...]
    ranks: tuple[RankRate, ...] = ()
    identification: tuple[AcceptRate, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


def evaluate_all_to_all(
    embeddings: Rows,
    labels: np.ndarray,
    distractors: Rows | None = None,
    *,
    protocol: str = "all-to-all",
    own_impostors: bool = True,
    far_targets: Sequence[float] = (1e-3, 1e-4, 1e-5, 1e-6),
    ranks: Sequence[int] = (1, 10),
    identification_far_targets: Sequence[float] = (1e-3,),
    resamples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    memory: int = MEMORY,
    world: World | None = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> AllToAllResult:
    """TAR at the smallest of FARs, exactly, in memory that does not grow with the comparisons.

    Impostor pairs are all pairs of different people among ``embeddings`` (unless
    ``own_impostors`` is off), and every one of them with every distractor. Distractors among each
    other are not compared: nobody knows who they are.

    Args:
        embeddings: (N, D), arrays or memory-mapped; their lengths do not matter.
        labels: (N,) integers.
        distractors: (M, D).
        protocol: what the result is called.
        own_impostors: count pairs of different people among ``embeddings``; MegaFace does not.
        far_targets: of the verification.
        ranks: of the identification against distractors.
        identification_far_targets: as shares of probes.
        resamples: bootstrap replicates over people; 0 for none.
        seed: of the replicates.
        device: where products are computed.
        memory: bytes of embeddings to hold at a time.
        world: the ranks that share the work.
        progress: called with (comparisons done, comparisons in all).
        keeper: keeps the state of an evaluation that may be interrupted.

    Raises:
        ValueError: no genuine or no impostor pairs, targets that would keep too many scores,
            embeddings that have no direction.

    Source: Deng et al., "Masked Face Recognition Challenge" (2021); Kemelmacher-Shlizerman et al.,
    "The MegaFace Benchmark" (2016); DeepGlint, "Trillion Pairs" (2018), whose server is gone.

    >>> faces = np.random.default_rng(0).standard_normal((30, 8)).repeat(2, axis=0)
    >>> result = evaluate_all_to_all(faces, np.arange(60) // 2, far_targets=[0.01], resamples=0)
    >>> result.genuine, result.impostors, result.verification[0].tar
    (30, 1740, 1.0)
    """
    labels = np.asarray(labels)
    if not len(far_targets) or (distractors is not None and not len(ranks)):
        raise ValueError("no FAR targets or no ranks were asked for; give at least one of each")
    if (labels < 0).any():
        raise ValueError(
            f"label {labels.min()}; label everybody from 0 on, and give strangers as distractors"
        )
    itself = Comparison(embeddings, labels)
    crossed = None if distractors is None else Comparison(embeddings, labels, distractors)
    person, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    genuine_pairs = int((sizes * (sizes - 1) // 2).sum())
    others = crossed.pairs if crossed else 0
    impostors = others + (itself.pairs - genuine_pairs if own_impostors else 0)
    keep = _tail_to_keep(genuine_pairs, int(sizes.max()), impostors, far_targets)
    genuine, tail = Genuine(), Tail(keep)
    collectors: dict[str, Collector] = {"genuine": genuine}
    if own_impostors:
        collectors["tail"] = tail
    total = itself.pairs + others
    settings: dict[str, Any] = {"device": device, "memory": memory, "world": world}
    kept = _Kept(keeper, progress, total)
    sweep(itself, collectors, **kept.settings("own", 0), **settings)
    scores, first, second = genuine.sorted()
    tails = [(*tail.sorted(), False)] if own_impostors else []
    rank_found: tuple[RankRate, ...] = ()
    identified: tuple[AcceptRate, ...] = ()
    if crossed is not None:
        against, nearest = Tail(keep), Nearest(len(labels), max(ranks))
        among: dict[str, Collector] = {"tail": against, "nearest": nearest}
        sweep(crossed, among, **kept.settings("distractors", itself.pairs), **settings)
        tails.append((*against.sorted(), True))
        rank_found, identified = _identify(
            scores,
            first,
            second,
            nearest,
            person,
            ranks,
            identification_far_targets,
            resamples,
            seed,
        )
    merged, identities = _merge(tails, keep, person)
    verification = accept_rates(
        scores,
        merged,
        impostors,
        far_targets,
        identities=TailIdentities(person[first], identities, sizes, others / impostors),
        resamples=resamples,
        seed=seed,
    )
    return AllToAllResult(
        protocol=protocol,
        images=len(labels),
        identities=len(sizes),
        distractors=0 if distractors is None else distractors.shape[0],
        genuine=genuine_pairs,
        impostors=impostors,
        verification=verification,
        ranks=rank_found,
        identification=identified,
    )


@dataclass(frozen=True)
class _Kept:
    """How the sweeps of one evaluation tell how far they are, and keep their states."""

    keeper: Keeper | None
    progress: Progress | None
    total: int

    def settings(self, name: str, before: int) -> dict[str, Any]:
        """Of the sweep of this name, when so many comparisons are done."""
        found: dict[str, Any] = {}
        progress, keeper = self.progress, self.keeper
        if progress is not None:
            found["progress"] = lambda done, _: progress(before + done, self.total)
        if keeper is not None:
            found["state"] = keeper.load(name)
            found["keep_state"] = lambda told: keeper.offer(name, told)
        return found


def _tail_to_keep(
    genuine: int, most_images: int, impostors: int, far_targets: Sequence[float]
) -> int:
    """How many impostor scores are needed; ValueError where there are too few or too many pairs."""
    if not genuine or not impostors:
        raise ValueError(
            f"{genuine} genuine and {impostors} impostor pairs; give people with several images "
            "each, and others or distractors to take them for"
        )
    if genuine > MOST_GENUINE:
        raise ValueError(
            f"{genuine:,} genuine pairs, of people with up to {most_images:,} images, are too many "
            f"to keep (at most {MOST_GENUINE:,}); take fewer images of each person"
        )
    most = max(false_accepts_allowed(far, impostors) for far in far_targets)
    keep = min(tail_length(most), impostors)
    if keep > MOST_KEPT:
        raise ValueError(
            f"FAR {max(far_targets)} allows {most:,} false accepts of {impostors:,} pairs, too "
            f"many to keep; ask for at most {MOST_KEPT / 2 / impostors:.1g}"
        )
    return keep


def _merge(
    tails: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, bool]], keep: int, person: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) the largest scores of all tails, and (T, 2) whose they are."""
    scores = np.concatenate([tail[0] for tail in tails])
    people = np.concatenate(
        [
            # Strangers are numbered behind the people.
            np.stack([person[rows], columns + len(person) if strange else person[columns]], axis=1)
            for _, rows, columns, strange in tails
        ]
    )
    order = np.argsort(-scores, kind="stable")[:keep]
    return scores[order], people[order]


def _identify(
    scores: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    nearest: Nearest,
    person: np.ndarray,
    ranks: Sequence[int],
    far_targets: Sequence[float],
    resamples: int,
    seed: int,
) -> tuple[tuple[RankRate, ...], tuple[AcceptRate, ...]]:
    """Each genuine pair both ways round: one is the probe, the other its mate in the gallery."""
    mate, probe = np.tile(scores, 2), np.concatenate([first, second])
    hits = np.stack([mate >= nearest.scores[probe, rank - 1] for rank in ranks], axis=1)
    order = np.argsort(-nearest.scores[:, 0], kind="stable")
    identified = accept_rates(
        np.where(mate >= nearest.scores[probe, 0], mate, -np.inf),
        nearest.scores[order, 0],
        len(person),
        far_targets,
        identities=TailIdentities(person[probe], person[order][:, None], np.bincount(person)),
        resamples=resamples,
        seed=seed,
    )
    return rank_rates(hits, ranks, person[probe], resamples, seed), identified
