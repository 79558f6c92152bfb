"""Parts of a set of images that share no identity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.data.contract import FaceImages


def split_identities(
    labels: np.ndarray, parts: Sequence[float] | Sequence[int], seed: int = 0
) -> list[np.ndarray]:
    """Ascending image indices of each part; all images of an identity go to the same part.

    Args:
        labels: (N,) integers, the identity of each image.
        parts: either shares of the identities, as floats that sum to 1, or numbers of identities,
            as integers (identities beyond their sum go to no part).
        seed: which identities go where.

    Raises:
        ValueError: shares that do not sum to 1, more identities than there are, an empty part.

    >>> [part.tolist() for part in split_identities(np.array([0, 0, 1, 2]), (0.67, 0.33))]
    [[0, 1, 3], [2]]
    """
    identities, inverse = np.unique(labels, return_inverse=True)
    total = len(identities)
    if all(isinstance(part, int | np.integer) for part in parts):
        bounds = np.cumsum(parts)
        if not len(bounds) or bounds[-1] > total:
            raise ValueError(
                f"parts = {list(parts)} ask for {sum(parts)} identities of {total}; lower them, or "
                "give shares as floats that sum to 1"
            )
    else:
        if min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
            raise ValueError(f"parts = {list(parts)} sum to {sum(parts)}; shares must sum to 1")
        bounds = np.rint(np.cumsum(parts) * total).astype(int)
    if min(np.diff(bounds, prepend=0)) < 1:
        raise ValueError(
            f"parts = {list(parts)} leave a part of {total} identities empty; give it more"
        )
    part_of_identity = np.full(total, len(bounds))
    shuffled = np.random.default_rng(seed).permutation(total)
    part_of_identity[shuffled] = np.searchsorted(bounds, np.arange(total), side="right")
    return [np.flatnonzero(part_of_identity[inverse] == part) for part in range(len(bounds))]


class ImageSubset:
    """Some images of a set, their identities numbered anew from 0.

    Attributes:
        labels: (M,) int64, the order of identities kept.
        class_names: the identities that occur.
        indices: (M,) int64, where each image stands in the whole set.
    """

    def __init__(self, images: FaceImages, indices: np.ndarray) -> None:
        self._images = images
        self.indices = np.asarray(indices, dtype=np.int64)
        kept, labels = np.unique(images.labels[self.indices], return_inverse=True)
        self.labels: np.ndarray = labels.astype(np.int64)
        self.class_names: tuple[str, ...] = tuple(images.class_names[int(label)] for label in kept)

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The file or record the image comes from, for messages."""
        return self._images.name(int(self.indices[index]))

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB; ValueError if it cannot be read."""
        return self._images.read(int(self.indices[index]))
