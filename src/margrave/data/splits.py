"""Identity-disjoint splits of a set of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from margrave.data.sources import ImageSource, open_source
from margrave.images import FaceImages

MIN_SHARE_FOR_PIECES = 1 / 16
"""A subset with a smaller share of the full set is read image by image, because it would use only
a small part of each piece."""


def split_identities(
    labels: np.ndarray, parts: Sequence[float] | Sequence[int], seed: int = 0
) -> list[np.ndarray]:
    """Split images into identity-disjoint parts; returns each part's image indices, ascending.

    Args:
        labels: (N,) integers, identity of each image.
        parts: the size of each part, either as fractions of the identities (floats that sum to 1)
            or as numbers of identities (integers; the remaining identities are unused).
        seed: seeds the assignment of identities to parts.

    Raises:
        ValueError: the fractions do not sum to 1, the parts need more identities than there
            are, or a part is empty.

    >>> [part.tolist() for part in split_identities(np.array([0, 0, 1, 2]), (0.67, 0.33))]
    [[0, 1, 3], [2]]
    """
    identities, inverse = np.unique(labels, return_inverse=True)
    total = len(identities)
    if all(isinstance(part, int | np.integer) for part in parts):
        bounds = np.cumsum(parts)
        if not len(bounds) or bounds[-1] > total:
            raise ValueError(
                f"parts = {list(parts)} sum to {sum(parts)} of {total} identities; lower them, or "
                "give fractions as floats that sum to 1"
            )
    else:
        if min(parts) < 0 or abs(sum(parts) - 1) > 1e-6:
            raise ValueError(f"parts = {list(parts)} sum to {sum(parts)}; fractions must sum to 1")
        bounds = np.rint(np.cumsum(parts) * total).astype(int)
    if min(np.diff(bounds, prepend=0)) < 1:
        raise ValueError(
            f"parts = {list(parts)} leave a part empty (of {total} identities); enlarge that part"
        )
    # Unused identities get the part number len(bounds), which is not returned.
    part_of_identity = np.full(total, len(bounds))
    shuffled = np.random.default_rng(seed).permutation(total)
    part_of_identity[shuffled] = np.searchsorted(bounds, np.arange(total), side="right")
    return [np.flatnonzero(part_of_identity[inverse] == part) for part in range(len(bounds))]


class ImageSubset(FaceImages):
    """A subset of images, with identities renumbered from 0.

    Attributes:
        labels: (M,) int64, class of each image; classes keep their original order.
        class_names: the identities in the subset, indexed by label.
        indices: (M,) int64, index of each image in the full set.
    """

    def __init__(self, images: ImageSource, indices: np.ndarray) -> None:
        source = open_source(images, labeled=True)
        self._images = source
        self.indices = np.asarray(indices, dtype=np.int64)
        classes, labels = np.unique(source.labels[self.indices], return_inverse=True)
        self.labels = labels.astype(np.int64)
        self.class_names = tuple(source.class_names[int(label)] for label in classes)
        self.alignment = source.alignment
        self._pieces = self._pieces_of(source)
        # The subset's window has as many pieces as a window of the full set, because the cache of
        # the full set is sized for that number.
        self.window = max(1, source.window * len(self.indices) // max(1, len(source)))

    def _pieces_of(self, source: FaceImages) -> np.ndarray | None:
        is_ascending = (np.diff(self.indices) > 0).all()
        is_sparse = len(self.indices) < MIN_SHARE_FOR_PIECES * len(source)
        if source.pieces is None or is_sparse or not is_ascending:
            return None
        # Duplicates are the bounds of pieces of which the subset contains no image.
        return np.unique(np.searchsorted(self.indices, source.pieces))

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The image's file or record, for messages."""
        return self._images.name(int(self.indices[index]))

    def path(self, index: int) -> str:
        """The image's identifier within its source."""
        return self._images.path(int(self.indices[index]))

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB; ValueError if it cannot be read."""
        return self._images.read(int(self.indices[index]))

    def read_bytes(self, index: int) -> bytes | None:
        """The image's encoded file, or None if there is none."""
        return self._images.read_bytes(int(self.indices[index]))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch these images together, unless that would fetch mostly images outside the subset."""
        if self._pieces is not None or self._images.pieces is None:
            self._images.prefetch(self.indices[np.asarray(indices, np.int64)].tolist())

    @property
    def pieces(self) -> np.ndarray | None:
        """(P + 1,) index of the first image of each piece, then M; see `ReadableImages.pieces`.

        None if the full set has no pieces, or if the subset contains few of the full set's images
        or contains them in another order.
        """
        return self._pieces

    @property
    def content_digest(self) -> str | None:
        """The full set's digest, which identifies the images together with their names."""
        return self._images.content_digest

    @property
    def quality(self) -> np.ndarray | None:
        """(M,) ground-truth quality in [0, 1]; None if unknown."""
        quality = self._images.quality
        return None if quality is None else quality[self.indices]
