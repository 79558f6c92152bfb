"""Draw genuine and impostor pairs of images from their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.data.pair_lists import PairList


def balanced_pairs(
    labels: np.ndarray, number_of_pairs: int, seed: int = 0, folds: int = 10
) -> PairList:
    """Draw balanced pairs, as in LFW: each fold is half genuine and half impostor pairs.

    No pair is drawn twice. Genuine pairs are spread over identities as evenly as their images
    allow; impostor pairs are drawn uniformly. The identities are divided among the folds if each
    fold's identities then allow enough pairs. Otherwise folds may share identities, and
    ``identity_disjoint`` is False.

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
            f"equal numbers of genuine and impostor pairs; give a multiple of {2 * folds}, "
            f"for example {nearest}"
        )
    generator = np.random.default_rng(seed)
    identity_images = _images_by_identity(np.asarray(labels), generator)
    num_genuine, num_impostor = _count_possible_pairs(identity_images)
    maximum = max_balanced_pairs(labels, folds)
    if maximum < number_of_pairs:
        raise ValueError(
            f"number_of_pairs = {number_of_pairs}, but {len(identity_images)} identities with "
            f"{sum(map(len, identity_images))} images allow {num_genuine} genuine and "
            f"{num_impostor} impostor pairs, so at most {maximum} balanced pairs in {folds} folds; "
            + (
                "lower number_of_pairs or add images"
                if maximum
                else "add images of the same identities"
            )
        )
    pairs_per_kind = number_of_pairs // 2
    # Identities are sorted by their number of images, so taking every `folds`-th identity gives
    # similar folds.
    groups = [identity_images[fold::folds] for fold in range(folds)]
    identity_disjoint = all(
        min(_count_possible_pairs(group)) >= pairs_per_kind // folds for group in groups
    )
    if not identity_disjoint:
        groups = [identity_images]
    count = pairs_per_kind // len(groups)
    # Genuine pairs, then impostor pairs; each has the shape (folds, pairs_per_kind // folds, 2).
    pairs_by_kind = [
        np.concatenate([draw(group, count, generator) for group in groups]).reshape(folds, -1, 2)
        for draw in (_draw_genuine, _draw_impostor)
    ]
    first, second = np.concatenate(pairs_by_kind, axis=1).reshape(-1, 2).T
    same = np.tile(np.repeat([True, False], pairs_per_kind // folds), folds)
    return PairList(first.copy(), second.copy(), same, folds, identity_disjoint)


def max_balanced_pairs(labels: np.ndarray, folds: int = 10) -> int:
    """The largest ``number_of_pairs`` that ``balanced_pairs`` can draw from these labels.

    >>> max_balanced_pairs(np.repeat(np.arange(40), 5)), max_balanced_pairs(np.arange(40))
    (800, 0)
    """
    identity_images = _images_by_identity(np.asarray(labels), np.random.default_rng(0))
    return min(_count_possible_pairs(identity_images)) // folds * 2 * folds


def _images_by_identity(labels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Each identity's image indices; identities with more images first, ties in random order."""
    counts = np.unique(labels, return_counts=True)[1]
    by_identity = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    shuffled = [by_identity[identity] for identity in generator.permutation(len(by_identity))]
    return sorted(shuffled, key=len, reverse=True)


def _count_possible_pairs(identity_images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Number of genuine and of impostor pairs among these identities."""
    sizes = np.array([len(images) for images in identity_images], dtype=np.int64)
    num_genuine = int((sizes * (sizes - 1) // 2).sum())
    return num_genuine, int(sizes.sum()) * (int(sizes.sum()) - 1) // 2 - num_genuine


def _draw_genuine(
    identity_images: Sequence[np.ndarray], count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw (count, 2) distinct genuine pairs in random order, spread evenly over identities."""
    sizes = np.array([len(images) for images in identity_images])
    possible = sizes * (sizes - 1) // 2
    quota = np.zeros_like(possible)
    # Raise the quotas of all identities equally, each up to its number of possible pairs. Once
    # fewer pairs remain than identities, draw the identities that get one more pair.
    while remaining := count - quota.sum():
        unfilled = np.flatnonzero(quota < possible)
        share = remaining // len(unfilled)
        if share:
            quota[unfilled] = np.minimum(possible[unfilled], quota[unfilled] + share)
        else:
            quota[generator.choice(unfilled, remaining, replace=False)] += 1
    drawn = []
    for images, num_drawn, num_possible in zip(identity_images, quota, possible, strict=True):
        if num_drawn:
            # Pairs i < j are numbered j(j-1)/2 + i; recover j (later), then i (earlier).
            pair_numbers = generator.choice(num_possible, num_drawn, replace=False)
            later = ((1 + np.sqrt(1 + 8.0 * pair_numbers)) / 2).astype(np.int64)
            earlier = pair_numbers - later * (later - 1) // 2
            drawn.append(np.stack([images[earlier], images[later]], axis=1))
    return generator.permutation(np.concatenate(drawn))


def _draw_impostor(
    identity_images: Sequence[np.ndarray], count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw (count, 2) distinct impostor pairs, uniformly from all impostor pairs."""
    all_images = np.concatenate(identity_images)
    sizes = np.array([len(images) for images in identity_images])
    # Pair each image with every image of the preceding identities, and number the pairs in this
    # order. The pairs of image i have the numbers from ends[i - 1] up to ends[i] - 1.
    partner_counts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ends = np.cumsum(partner_counts)
    pair_numbers = generator.choice(int(ends[-1]), count, replace=False)
    later = np.searchsorted(ends, pair_numbers, side="right")
    earlier = pair_numbers - (ends[later] - partner_counts[later])
    return np.stack([all_images[earlier], all_images[later]], axis=1)
