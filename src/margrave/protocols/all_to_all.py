"""All-to-all comparison of labeled faces, as in Trillion-Pairs, MFR and LFR."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from margrave.evaluation import AllToAllResult, Result, evaluate_all_to_all
from margrave.inference import ChosenRows, Features, FeatureStore
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol
from margrave.search import StateFile, rank_state_path


def measurable_targets(labels: np.ndarray, distractors: int = 0) -> tuple[float, ...]:
    """Up to four FARs, in decreasing order: the smallest that allow at least one false accept.

    Only the powers of ten from 0.1 to 1e-9 are considered. With fewer than 10 impostor pairs, the
    result is (0.1,).

    Args:
        labels: (N,) identity of each embedding.
        distractors: number of distractors; each is compared with all N embeddings.

    >>> measurable_targets(np.array([0] * 20 + [1]))  # 20 of the 210 pairs are impostor pairs
    (0.1,)
    """
    sizes = np.unique(labels, return_counts=True)[1].tolist()
    num_pairs = len(labels) * (len(labels) - 1) // 2
    num_genuine = sum(size * (size - 1) // 2 for size in sizes)
    num_impostors = num_pairs - num_genuine + len(labels) * distractors
    powers = [10.0**-power for power in range(1, 10)]
    return tuple(far for far in powers if far * num_impostors >= 1)[-4:] or (0.1,)


@PROTOCOLS.register("all-to-all")
class AllToAll(Protocol):
    """Compare all labeled faces with each other, as in Trillion-Pairs, MFR and LFR."""

    distributed: ClassVar[bool] = True
    labeled: ClassVar[bool] = True

    distractors: Path | None = None
    """A feature store of other identities; each distractor is compared with every labeled face."""
    far: tuple[float, ...] | None = None
    """FAR targets; default: the four smallest powers of ten with enough impostor pairs."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Evaluate the features and return one result."""
        distractors = None if self.distractors is None else FeatureStore(self.distractors)
        return [compare_all(features, distractors, self.far, options).result()]


def compare_all(
    features: Features,
    distractors: Features | None = None,
    far_targets: Sequence[float] | None = None,
    options: EvaluationOptions | None = None,
) -> AllToAllResult:
    """Compare all pairs of labeled faces, and each labeled face with every distractor.

    Args:
        features: labeled features.
        distractors: features of other identities.
        far_targets: FAR targets; by default the four smallest powers of ten for which there are
            enough impostor pairs.
        options: options that do not depend on the protocol.

    Raises:
        ValueError: there are no labeled images, the distractors were embedded by another model or
            with other preprocessing, or the pairs are insufficient (see ``evaluate_all_to_all``).
    """
    options = options or EvaluationOptions()
    readable = features.readable_rows
    labeled = readable[features.labels[readable] >= 0]
    if not len(labeled):
        raise ValueError(
            f"{features.display_name} holds no labeled images; embed a folder with one subfolder "
            "per identity"
        )
    distractor_rows = None
    if distractors is not None:
        features.check_comparable(distractors)
        distractor_rows = ChosenRows(distractors.rows, distractors.readable_rows)
    if far_targets is None:
        distractor_count = 0 if distractor_rows is None else distractor_rows.shape[0]
        far_targets = measurable_targets(features.labels[labeled], distractor_count)
    return evaluate_all_to_all(
        ChosenRows(features.rows, labeled),
        features.labels[labeled],
        distractor_rows,
        far_targets=far_targets,
        world=options.world,
        state_store=open_state_file(
            options, ["all-to-all", list(far_targets)], features, distractors
        ),
        **options.search,
    )


def open_state_file(
    options: EvaluationOptions, settings: list[Any], *features: Features | None
) -> StateFile | None:
    """Open the state file that makes an evaluation resumable; None without ``options.state``.

    A saved state is only resumed if it has the same settings, features and number of processes.

    Args:
        options: options that do not depend on the protocol.
        settings: the protocol's name and settings.
        features: the compared features, identified by their digests; None is skipped.
    """
    if options.state is None:
        return None
    digests = [compared.digest for compared in features if compared is not None]
    evaluation_key = json.dumps([settings, options.world.size, digests])
    return StateFile(rank_state_path(options.state, options.world), evaluation_key)
