"""All-to-all verification, and identification against millions of distractors (MegaFace)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from margrave.distributed import World
from margrave.evaluation.accept_rates import AcceptRate, accept_rates, false_accepts_allowed
from margrave.evaluation.identification import RankRate, checked_ranks, rank_rates
from margrave.evaluation.inputs import as_labels, as_rows, check_resamples, checked_targets
from margrave.evaluation.results import Result
from margrave.evaluation.tail_bootstrap import TailIdentities, tail_length
from margrave.progress import Progress
from margrave.search.collectors import Genuine, Nearest, Tail
from margrave.search.score_blocks import (
    MEMORY,
    Collector,
    Comparison,
    Rows,
    State,
    sweep,
)

MAX_IMPOSTOR_SCORES = 1 << 25
"""Largest number of impostor scores to store; each takes 20 bytes (a float32 score and two int64
indices), or 24 if the embeddings are float64."""
MAX_GENUINE_SCORES = 1 << 26
"""Largest number of genuine scores to store, at 20 or 24 bytes each."""


class StateStore(Protocol):
    """Saves the state of an evaluation, so that an interrupted evaluation can be resumed.

    ``margrave.search.StateFile`` is an implementation.
    """

    def load(self, name: str) -> State | None:
        """The state saved under a name, or None."""
        ...

    def save(self, name: str, snapshot: Callable[[], State]) -> None:
        """Save `snapshot()` under a name, unless it is too soon after the last save."""
        ...


@dataclass(frozen=True)
class AllToAllResult:
    """The result of comparing every face with every other face.

    Attributes:
        rules: the protocol's rules.
        images: number of labeled faces.
        identities: number of identities of the labeled faces.
        distractors: number of faces of unknown identity.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs, including those with distractors.
        verification: TAR at each FAR target, over all pairs.
        ranks: for each rank k, the share of probes whose mate is among the k most similar faces.
            Each genuine pair gives two probes: each face, with the other as its mate. The gallery
            consists of the mate and all distractors. Empty without distractors.
        identification: for each FAR target, the share of probes whose mate ranks first and scores
            above the threshold. Here, the FAR is the share of labeled faces whose most similar
            distractor scores above the threshold. Empty without distractors.
    """

    rules: str
    images: int
    identities: int
    distractors: int
    genuine: int
    impostors: int
    verification: tuple[AcceptRate, ...]
    ranks: tuple[RankRate, ...] = ()
    identification: tuple[AcceptRate, ...] = ()

    def result(self, name: str = "") -> Result:
        """Convert to the common result format.

        Args:
            name: the name of the data set.
        """
        count_names = ("images", "identities", "distractors", "genuine", "impostors")
        return Result(
            protocol="all-to-all",
            name=name,
            rules=self.rules,
            figures=(
                *(rate.figure() for rate in self.verification),
                *(rank.figure(gallery="distractors") for rank in self.ranks),
                *(rate.figure("identification rate", rank=1) for rate in self.identification),
            ),
            counts={count_name: getattr(self, count_name) for count_name in count_names},
        )


def evaluate_all_to_all(
    embeddings: Rows,
    labels: np.ndarray,
    distractors: Rows | None = None,
    *,
    rules: str = "every pair of faces, FAR at most the target",
    impostors_within: bool = True,
    far_targets: Sequence[float] = (1e-3, 1e-4, 1e-5, 1e-6),
    ranks: Sequence[int] = (1, 10),
    identification_far_targets: Sequence[float] = (1e-3,),
    resamples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    memory: int = MEMORY,
    world: World | None = None,
    progress: Progress | None = None,
    state_store: StateStore | None = None,
) -> AllToAllResult:
    """Exact TAR at very low FARs over all pairs, without storing all scores.

    Impostor pairs are all pairs of different identities within ``embeddings`` (unless
    ``impostors_within`` is False) and all pairs of an embedding and a distractor. Distractors are
    not compared with each other, because their identities are unknown.

    Args:
        embeddings: (N, D) embeddings of any norm, in memory or memory-mapped.
        labels: (N,) labels of any hashable type.
        distractors: (M, D) embeddings of faces of other, unknown identities.
        rules: the protocol's rules as text, for the result.
        impostors_within: True counts the impostor pairs within ``embeddings`` and those with
            distractors; False counts only those with distractors, as MegaFace does.
        far_targets: FAR targets of the verification, each in (0, 1).
        ranks: ranks of the identification against distractors, each at least 1.
        identification_far_targets: FAR targets of the identification, as shares of the labeled
            faces, each in (0, 1).
        resamples: number of bootstrap replicates over identities; 0 for none.
        seed: seed of the bootstrap.
        device: the device that computes the scores.
        memory: number of bytes of embeddings to hold in memory at a time.
        world: the processes that share the work; None for one process.
        progress: called with (comparisons done, total).
        state_store: saves the state, so that an interrupted evaluation can be resumed; None to save
            nothing.

    Raises:
        ValueError: genuine or impostor pairs are missing, a FAR target is not in (0, 1) or requires
            storing too many scores, a rank is below 1, ``resamples`` is 1, or an embedding is zero
            or not finite.

    Source: Deng et al., "Masked Face Recognition Challenge" (2021); Kemelmacher-Shlizerman et al.,
    "The MegaFace Benchmark" (2016); DeepGlint, "Trillion Pairs" (2018; now offline).

    >>> faces = np.random.default_rng(0).standard_normal((30, 8)).repeat(2, axis=0)
    >>> result = evaluate_all_to_all(faces, np.arange(60) // 2, far_targets=[0.01], resamples=0)
    >>> result.genuine, result.impostors, result.verification[0].tar
    (30, 1740, 1.0)
    """
    embeddings, distractors = as_rows(embeddings), as_rows(distractors)
    (labels,) = as_labels(labels)
    if not len(far_targets):
        raise ValueError("far_targets must not be empty")
    far_targets = checked_targets(far_targets, "FAR")
    if distractors is not None:
        ranks = checked_ranks(ranks)
        identification_far_targets = checked_targets(identification_far_targets, "FAR")
    if resamples:
        check_resamples(resamples)
    if (labels < 0).any():
        raise ValueError(
            f"labels must not be negative, got {labels.min()} (None counts as -1); pass faces of "
            "unknown identity as distractors"
        )
    labeled_comparison = Comparison(embeddings, labels)
    distractor_comparison = (
        None if distractors is None else Comparison(embeddings, labels, distractors)
    )
    identity_of_face, images_per_identity = np.unique(
        labels, return_inverse=True, return_counts=True
    )[1:]
    genuine_count = int((images_per_identity * (images_per_identity - 1) // 2).sum())
    distractor_pair_count = distractor_comparison.pairs if distractor_comparison else 0
    impostor_count = distractor_pair_count + (
        labeled_comparison.pairs - genuine_count if impostors_within else 0
    )
    tail_size = _tail_size(
        genuine_count, int(images_per_identity.max(initial=0)), impostor_count, far_targets
    )
    genuine, tail = Genuine(), Tail(tail_size)
    collectors: dict[str, Collector] = {"genuine": genuine}
    if impostors_within:
        collectors["tail"] = tail
    settings: dict[str, Any] = {"device": device, "memory": memory, "world": world}
    sweeps = _Sweeps(state_store, progress, total=labeled_comparison.pairs + distractor_pair_count)
    # In state files, the comparison of the embeddings with each other is called "own".
    sweep(labeled_comparison, collectors, **sweeps.options("own", 0), **settings)
    genuine_scores, first_faces, second_faces = genuine.sorted()
    # Each tuple: the scores, rows and columns, and whether the columns are distractors.
    tails = [(*tail.sorted(), False)] if impostors_within else []
    rank_results: tuple[RankRate, ...] = ()
    identification: tuple[AcceptRate, ...] = ()
    if distractor_comparison is not None:
        distractor_tail, nearest = Tail(tail_size), Nearest(len(labels), max(ranks))
        collectors = {"tail": distractor_tail, "nearest": nearest}
        sweep(
            distractor_comparison,
            collectors,
            **sweeps.options("distractors", labeled_comparison.pairs),
            **settings,
        )
        tails.append((*distractor_tail.sorted(), True))
        rank_results, identification = _identification_rates(
            genuine_scores,
            first_faces,
            second_faces,
            nearest,
            identity_of_face,
            ranks,
            identification_far_targets,
            resamples,
            seed,
        )
    merged_tail, tail_identities = _merge_tails(tails, tail_size, identity_of_face)
    verification = accept_rates(
        genuine_scores,
        merged_tail,
        impostor_count,
        far_targets,
        identities=TailIdentities(
            identity_of_face[first_faces],
            tail_identities,
            images_per_identity,
            distractor_pair_count / impostor_count,
        ),
        resamples=resamples,
        seed=seed,
    )
    return AllToAllResult(
        rules=rules,
        images=len(labels),
        identities=len(images_per_identity),
        distractors=0 if distractors is None else distractors.shape[0],
        genuine=genuine_count,
        impostors=impostor_count,
        verification=verification,
        ranks=rank_results,
        identification=identification,
    )


@dataclass(frozen=True)
class _Sweeps:
    """Reports the overall progress of an evaluation's sweeps and saves their states.

    Attributes:
        state_store: saves the states; None to save nothing.
        progress: called with (comparisons done, total) of all sweeps.
        total: number of comparisons in all sweeps together.
    """

    state_store: StateStore | None
    progress: Progress | None
    total: int

    def options(self, name: str, pairs_before: int) -> dict[str, Any]:
        """The arguments ``progress``, ``state`` and ``save_state`` of one ``sweep``, where needed.

        Args:
            name: the name under which the sweep's state is saved.
            pairs_before: number of comparisons in earlier sweeps.
        """
        options: dict[str, Any] = {}
        progress, state_store = self.progress, self.state_store
        if progress is not None:
            options["progress"] = lambda done, _: progress(pairs_before + done, self.total)
        if state_store is not None:
            options["state"] = state_store.load(name)
            options["save_state"] = lambda snapshot: state_store.save(name, snapshot)
        return options


def _tail_size(
    genuine_count: int,
    max_images_per_identity: int,
    impostor_count: int,
    far_targets: Sequence[float],
) -> int:
    """The number of impostor scores to store for the largest FAR target.

    Raises:
        ValueError: genuine or impostor pairs are missing, or too many scores would be stored.
    """
    if not genuine_count or not impostor_count:
        raise ValueError(
            f"got {genuine_count} genuine and {impostor_count} impostor pairs, both are required; "
            "provide several identities (or distractors) and several images of some identities"
        )
    if genuine_count > MAX_GENUINE_SCORES:
        raise ValueError(
            f"{genuine_count:,} genuine pairs exceed the limit of {MAX_GENUINE_SCORES:,}; use "
            f"fewer images per identity (the largest identity has {max_images_per_identity:,})"
        )
    allowed = max(false_accepts_allowed(far, impostor_count) for far in far_targets)
    tail_size = min(tail_length(allowed), impostor_count)
    if tail_size > MAX_IMPOSTOR_SCORES:
        # The tail may be up to twice as long as the number of allowed false accepts. The suggested
        # FAR is rounded down to a power of ten.
        max_far = 10.0 ** math.floor(math.log10(MAX_IMPOSTOR_SCORES / 2 / impostor_count))
        raise ValueError(
            f"FAR {max(far_targets)} allows {allowed:,} false accepts among {impostor_count:,} "
            f"impostor pairs, too many scores to store; use FAR targets of at most {max_far:g}"
        )
    return tail_size


def _merge_tails(
    tails: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, bool]],
    tail_size: int,
    identity_of_face: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) the largest scores of all tails, and (T, 2) the identities of their pairs.

    Args:
        tails: for each sweep: scores, rows, columns, and True if the columns are distractors.
        tail_size: T, the number of scores to keep.
        identity_of_face: (N,) the identity index of each embedding.
    """
    scores = np.concatenate([tail[0] for tail in tails])
    identities = np.concatenate(
        [
            # Distractors get indices above those of all identities; see TailIdentities.
            np.stack(
                [
                    identity_of_face[rows],
                    columns + len(identity_of_face)
                    if with_distractors
                    else identity_of_face[columns],
                ],
                axis=1,
            )
            for _, rows, columns, with_distractors in tails
        ]
    )
    order = np.argsort(-scores, kind="stable")[:tail_size]
    return scores[order], identities[order]


def _identification_rates(
    genuine_scores: np.ndarray,
    first_faces: np.ndarray,
    second_faces: np.ndarray,
    nearest: Nearest,
    identity_of_face: np.ndarray,
    ranks: Sequence[int],
    far_targets: Sequence[float],
    resamples: int,
    seed: int,
) -> tuple[tuple[RankRate, ...], tuple[AcceptRate, ...]]:
    """Identification rates at each rank, and rates of mates that rank first and are accepted.

    Each genuine pair gives two probes: each face, with the other as its mate. The second result is,
    for each FAR target, the share of probes whose mate ranks first and scores above the threshold.

    Args:
        genuine_scores: (G,) scores of the genuine pairs.
        first_faces: (G,) row index of each genuine pair's first embedding.
        second_faces: (G,) row index of each genuine pair's second embedding.
        nearest: the distractors nearest to each embedding.
        identity_of_face: (N,) the identity index of each embedding.
        ranks: the ranks to report.
        far_targets: FAR targets, as shares of the embeddings.
        resamples: number of bootstrap replicates; 0 for none.
        seed: seed of the bootstrap.
    """
    mate_scores, probes = np.tile(genuine_scores, 2), np.concatenate([first_faces, second_faces])
    hits = np.stack([mate_scores >= nearest.scores[probes, rank - 1] for rank in ranks], axis=1)
    # The impostor scores are those of each face with its most similar distractor. A mate that does
    # not rank first gets −inf, so that no threshold accepts it.
    order = np.argsort(-nearest.scores[:, 0], kind="stable")
    identification = accept_rates(
        np.where(mate_scores >= nearest.scores[probes, 0], mate_scores, -np.inf),
        nearest.scores[order, 0],
        len(identity_of_face),
        far_targets,
        identities=TailIdentities(
            identity_of_face[probes],
            identity_of_face[order][:, None],
            np.bincount(identity_of_face),
        ),
        resamples=resamples,
        seed=seed,
    )
    rates = rank_rates(hits, ranks, identity_of_face[probes], resamples, seed)
    return rates, identification
