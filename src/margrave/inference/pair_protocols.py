"""Pairs of stored features: LFW and its like, RFW, YTF, two models on the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from margrave.data import PairList, read_named_pairs, read_pairs_bin
from margrave.data.protocol_files import (
    read_group_pairs,
    read_youtube_pairs,
)
from margrave.evaluation import (
    Difference,
    PairResult,
    Pooling,
    compare_pairs,
    evaluate_pairs,
    pool_templates,
    unit_rows,
)
from margrave.inference.feature_store import ChosenRows, FeatureStore


@dataclass(frozen=True)
class GroupsResult:
    """Verification of several groups of people, each with pairs of its own (RFW).

    Attributes:
        protocol: the rules.
        groups: each group's verification.
        mean: of the groups' accuracies.
        deviation: their population standard deviation.
        skewed_error_ratio: the largest error over the smallest; None where the smallest is 0.
    """

    protocol: str
    groups: Mapping[str, PairResult]
    mean: float
    deviation: float
    skewed_error_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything as numbers, strings, lists and dictionaries."""
        return asdict(self)


def judge_pairs(store: FeatureStore, pairs: str | Path, resamples: int = 1000) -> PairResult:
    """LFW's protocol over pairs of stored features.

    Args:
        store: the features.
        pairs: a .bin set whose images the store holds in order, a table (.csv: path_a, path_b,
            same), or a list in LFW's format.
        resamples: bootstrap replicates; 0 for none.

    Raises:
        ValueError: malformed pairs, or images that the store lacks.
    """
    return _judge_pair_list(store, _open_pairs(store, pairs), resamples)


def _open_pairs(store: FeatureStore, pairs: str | Path) -> PairList:
    if str(pairs).lower().endswith(".bin"):
        listed, images = read_pairs_bin(pairs)
        embedded = store.description["images"]
        if embedded.get("content_digest") != images.content_digest:
            raise ValueError(
                f"{store.folder} holds features of {len(store)} images of "
                f"{embedded['source']!r}, not of the {len(images)} in {pairs}; embed that very "
                f"file: margrave embed MODEL {pairs} FEATURES"
            )
        return listed
    return read_named_pairs(pairs, store.names)


def _judge_pair_list(store: FeatureStore, pairs: PairList, resamples: int) -> PairResult:
    first, second, identities = _sides(store, pairs)
    result = evaluate_pairs(first, second, pairs.same, pairs.folds, identities, resamples=resamples)
    code = "F1" if store.flipped is None else "F2"
    return PairResult(**{**vars(result), "protocol": f"{result.protocol}; {code}"})


def _sides(
    store: FeatureStore, pairs: PairList
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(P, D) and (P, D) embeddings of both sides, and (P, 2) identities where they are known."""
    used, place = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    rows = ChosenRows(store.rows, store.readable(used))[0 : len(used)]
    first, second = place.reshape(2, -1)
    identities = np.stack([store.labels[pairs.first], store.labels[pairs.second]], axis=1)
    # Folders need not be identities (RFW's are groups): then they contradict the pairs.
    consistent = ((identities[:, 0] == identities[:, 1]) == pairs.same).all()
    known = bool((identities >= 0).all() and consistent)
    return rows[first], rows[second], identities if known else None


def judge_difference(
    first: FeatureStore,
    second: FeatureStore,
    pairs: str | Path,
    far_targets: Sequence[float] = (1e-2, 1e-3),
    resamples: int = 1000,
) -> tuple[Difference, ...]:
    """Which of two models is better on the same pairs, and whether that means anything.

    Args:
        first: features by one model.
        second: of the same images by the other.
        pairs: as for ``judge_pairs``.
        far_targets: of the true accept rates compared.
        resamples: bootstrap replicates.

    Raises:
        ValueError: as ``judge_pairs``.
    """
    listed = _open_pairs(first, pairs)
    one, other, identities = _sides(first, listed)
    first_distances = np.square(unit_rows(one) - unit_rows(other)).sum(1)
    one, other, _ = _sides(second, _open_pairs(second, pairs))
    return compare_pairs(
        first_distances,
        np.square(unit_rows(one) - unit_rows(other)).sum(1),
        listed.same,
        listed.folds,
        identities,
        far_targets,
        resamples,
    )


def judge_groups(store: FeatureStore, folder: str | Path, resamples: int = 1000) -> GroupsResult:
    """Each group's pairs by LFW's protocol, and how far the groups lie apart (RFW).

    Args:
        store: the features of all groups' images.
        folder: with a list of pairs for each group, see ``read_group_pairs``.
        resamples: bootstrap replicates; 0 for none.

    Source: Wang et al., "Racial Faces in the Wild" (2019).
    """
    lists = read_group_pairs(folder)
    if packed := [path for path in lists.values() if path.suffix == ".bin"]:
        raise ValueError(
            f"{packed[0]} brings its own images: embed each group's .bin and judge it by "
            "margrave judge pairs; groups are lists of pairs of one folder's images"
        )
    groups = {name: judge_pairs(store, path, resamples) for name, path in lists.items()}
    accuracies = np.array([result.accuracy for result in groups.values()])
    errors = 1 - accuracies
    return GroupsResult(
        protocol="LFW 10-fold in each group",
        groups=groups,
        mean=float(accuracies.mean()),
        deviation=float(accuracies.std()),
        skewed_error_ratio=float(errors.max() / errors.min()) if errors.min() > 0 else None,
    )


def judge_youtube(store: FeatureStore, pairs: str | Path, resamples: int = 1000) -> PairResult:
    """YTF: frames of a video are pooled, pairs of videos judged by LFW's protocol.

    Args:
        store: features of the frames, named ``Person/number/frame.jpg``.
        pairs: ``splits.txt``.
        resamples: bootstrap replicates; 0 for none.

    Raises:
        ValueError: a malformed list, videos without frames in the store.

    Source: Wolf, Hassner, Maoz, "Face recognition in unconstrained videos" (2011), restricted.
    """
    listed = read_youtube_pairs(pairs)
    video_of: dict[str, list[int]] = {}
    for row, name in enumerate(store.names):
        if row not in store.unreadable:
            video_of.setdefault(PurePath(name).parent.as_posix(), []).append(row)
    videos = list(dict.fromkeys((*listed.first, *listed.second)))
    missing = [video for video in videos if video not in video_of]
    if missing:
        raise ValueError(
            f"{pairs} names {len(missing)} videos of which {store.folder} has no frames, "
            f"{missing[0]} the first; its names look like {store.name(0)!r}"
        )
    rows = np.concatenate([video_of[video] for video in videos])
    template = np.repeat(np.arange(len(videos)), [len(video_of[video]) for video in videos])
    pooling = Pooling(flip=store.flipped is not None)
    _, pooled = pool_templates(
        store.embeddings,
        template,
        np.zeros_like(template),
        flipped=store.flipped,
        rows=rows,
        pooling=pooling,
    )
    place = {video: number for number, video in enumerate(videos)}
    first, second = (
        np.array([place[video] for video in side]) for side in (listed.first, listed.second)
    )
    person = np.unique([PurePath(video).parts[0] for video in videos], return_inverse=True)[1]
    identities = np.stack([person[first], person[second]], axis=1)
    consistent = ((identities[:, 0] == identities[:, 1]) == listed.same).all()
    result = evaluate_pairs(
        pooled[first],
        pooled[second],
        listed.same,
        int(listed.fold.max()) + 1,
        identities if consistent else None,
        resamples=resamples,
    )
    protocol = f"{result.protocol}; videos pooled, {pooling.code}"
    return PairResult(**{**vars(result), "protocol": protocol})
