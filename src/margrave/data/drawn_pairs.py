"""Pairs drawn from labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.data.pair_lists import PairList


def balanced_pairs(
    labels: np.ndarray, number_of_pairs: int, seed: int = 0, folds: int = 10
) -> PairList:
    """Draw balanced pairs, as in LFW: each fold has as many genuine as impostor pairs.

    No pair is drawn twice. Genuine pairs are spread over identities as evenly as their images
    allow; impostor pairs are uniform over all pairs of images of different identities. Folds share
    no identities if each can still have enough pairs; otherwise ``identity_disjoint`` is False.

    Args:
        labels: (N,) integers, the identity of each image.
        number_of_pairs: total number of pairs, a multiple of 2 · folds.
        seed: seeds the random draw.
        folds: number of cross-validation folds.

    Raises:
        ValueError: `number_of_pairs` is not a multiple of 2 · folds, or more than exist.

    >>> pairs = balanced_pairs(np.repeat(np.arange(40), 5), 200)
    >>> len(pairs), int(pairs.same.sum()), pairs.identity_disjoint
    (200, 100, True)
    """
    if number_of_pairs < 1 or folds < 1 or number_of_pairs % (2 * folds):
        nearest = max(1, round(number_of_pairs / (2 * folds))) * 2 * folds
        raise ValueError(
            f"number_of_pairs = {number_of_pairs} does not split into {folds} folds with "
            f"as many genuine as impostor pairs; give a multiple of {2 * folds}, "
            f"for example {nearest}"
        )
    generator = np.random.default_rng(seed)
    images_of = _images_by_identity(np.asarray(labels), generator)
    genuine, impostor = _count_possible_pairs(images_of)
    possible = max_balanced_pairs(labels, folds)
    if possible < number_of_pairs:
        raise ValueError(
            f"number_of_pairs = {number_of_pairs}, but {len(images_of)} identities with "
            f"{sum(map(len, images_of))} images allow {genuine} genuine and {impostor} impostor "
            f"pairs, so at most {possible} balanced pairs in {folds} folds; "
            + ("ask for fewer or add images" if possible else "add images of the same identities")
        )
    half = number_of_pairs // 2
    groups = [images_of[fold::folds] for fold in range(folds)]
    identity_disjoint = all(min(_count_possible_pairs(group)) >= half // folds for group in groups)
    if not identity_disjoint:
        groups = [images_of]
    pairs_per_group = half // len(groups)
    halves = [
        np.concatenate([draw(group, pairs_per_group, generator) for group in groups]).reshape(
            folds, -1, 2
        )
        for draw in (_draw_genuine, _draw_impostor)
    ]
    first, second = np.concatenate(halves, axis=1).reshape(-1, 2).T
    same = np.tile(np.repeat([True, False], half // folds), folds)
    return PairList(first.copy(), second.copy(), same, folds, identity_disjoint)


def max_balanced_pairs(labels: np.ndarray, folds: int = 10) -> int:
    """The largest ``number_of_pairs`` that ``balanced_pairs`` can draw from these labels.

    >>> max_balanced_pairs(np.repeat(np.arange(40), 5)), max_balanced_pairs(np.arange(40))
    (800, 0)
    """
    images_of = _images_by_identity(np.asarray(labels), np.random.default_rng(0))
    return min(_count_possible_pairs(images_of)) // folds * 2 * folds


def _images_by_identity(labels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Each identity's image indices, sorted by decreasing count, ties in random order."""
    counts = np.unique(labels, return_counts=True)[1]
    groups = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    shuffled = [groups[which] for which in generator.permutation(len(groups))]
    return sorted(shuffled, key=len, reverse=True)


def _count_possible_pairs(images_of: Sequence[np.ndarray]) -> tuple[int, int]:
    """Number of genuine and of impostor pairs among these identities."""
    sizes = np.array([len(images) for images in images_of], dtype=np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    return genuine, int(sizes.sum()) * (int(sizes.sum()) - 1) // 2 - genuine


def _draw_genuine(
    images_of: Sequence[np.ndarray], count: int, generator: np.random.Generator
) -> np.ndarray:
    """(count, 2) distinct genuine pairs, as evenly over identities as possible, in random order."""
    sizes = np.array([len(images) for images in images_of])
    possible = sizes * (sizes - 1) // 2
    quota = np.zeros_like(possible)
    while missing := count - quota.sum():
        open_identities = np.flatnonzero(quota < possible)
        share = missing // len(open_identities)
        if share:
            quota[open_identities] = np.minimum(
                possible[open_identities], quota[open_identities] + share
            )
        else:
            quota[generator.choice(open_identities, missing, replace=False)] += 1
    drawn = []
    for images, wanted, limit in zip(images_of, quota, possible, strict=True):
        if wanted:
            # Pairs i < j are numbered p = j(j-1)/2 + i; recover j, then i.
            numbers = generator.choice(limit, wanted, replace=False)
            later = ((1 + np.sqrt(1 + 8.0 * numbers)) / 2).astype(np.int64)
            earlier = numbers - later * (later - 1) // 2
            drawn.append(np.stack([images[earlier], images[later]], axis=1))
    return generator.permutation(np.concatenate(drawn))


def _draw_impostor(
    images_of: Sequence[np.ndarray], count: int, generator: np.random.Generator
) -> np.ndarray:
    """(count, 2) distinct impostor pairs, uniform over all impostor pairs."""
    images = np.concatenate(images_of)
    sizes = np.array([len(group) for group in images_of])
    # Each image is paired with every image before its own group; number the pairs in this order.
    partner_counts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ends = np.cumsum(partner_counts)
    numbers = generator.choice(int(ends[-1]), count, replace=False)
    later = np.searchsorted(ends, numbers, side="right")
    earlier = numbers - (ends[later] - partner_counts[later])
    return np.stack([images[earlier], images[later]], axis=1)
