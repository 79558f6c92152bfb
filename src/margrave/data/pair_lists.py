"""Pairs of images, and helpers shared by the readers of pair lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from margrave.files import listed
from margrave.quantity import quantity

_NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class PairList:
    """P pairs of images, in consecutive folds of P / folds pairs for cross-validation.

    If P is not a multiple of ``folds``, each of the first P mod ``folds`` folds has one more pair.

    Attributes:
        first: (P,) int64, index of each pair's first image.
        second: (P,) int64, index of each pair's second image.
        same: (P,) bool, True if both images show the same identity.
        folds: number of cross-validation folds.
        identity_disjoint: True if the folds are known to share no identities.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray
    folds: int = 10
    identity_disjoint: bool = False

    def __post_init__(self) -> None:
        if not (self.first.shape == self.second.shape == self.same.shape == (len(self.same),)):
            raise ValueError(
                f"first {self.first.shape}, second {self.second.shape} and same {self.same.shape} "
                "must be one-dimensional and have equal lengths"
            )
        if not 1 <= self.folds <= len(self.same):
            raise ValueError(
                f"folds = {self.folds} must be between 1 and the number of pairs ({len(self.same)})"
            )

    def __len__(self) -> int:
        return len(self.same)


def split_whitespace(line: str) -> list[str]:
    """Split a line at tabs if it contains any, otherwise at spaces."""
    parts = line.split("\t") if "\t" in line else line.split()
    return [part.strip() for part in parts]


def look_up(
    path: Path,
    pairs: Sequence[Sequence],
    index_of: Callable[..., int | None],
    format_key: Callable[..., str],
) -> tuple[np.ndarray, np.ndarray]:
    """Look up the indices of the images that a pair list names.

    Args:
        path: the list, for messages.
        pairs: the keys of each pair's two images; a key is a path, or (identity, file stem).
        index_of: maps a key to the image's index, or to None if there is no such image.
        format_key: formats a key for messages.

    Returns:
        (P,) indices of the pairs' first images, and (P,) indices of their second images.

    Raises:
        ValueError: images are missing; the message names the first few.
    """
    indices_of_pairs = [[index_of(key) for key in pair] for pair in pairs]
    missing = list(
        dict.fromkeys(
            format_key(key)
            for pair, indices in zip(pairs, indices_of_pairs, strict=True)
            for key, index in zip(pair, indices, strict=True)
            if index is None
        )
    )
    if missing:
        raise ValueError(
            f"{path} names {quantity(len(missing), 'missing image')}: "
            f"{listed(missing, _NAMES_SHOWN)}; "
            "give the image folder or features file to which the list belongs"
        )
    first, second = np.array(indices_of_pairs, dtype=np.int64).T
    # The columns are strided views; the copies are contiguous.
    return first.copy(), second.copy()
