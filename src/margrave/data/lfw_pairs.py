"""Read pair lists like LFW's ``pairs.txt``, which gives identities and image numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np

from margrave.data.pair_lists import PairList, look_up, split_whitespace
from margrave.files.text import malformed, parse_whole_number, read_lines


class NamedImages(Protocol):
    """Images with labels and names; pixels are not needed."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) class of each image."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """Identity of each class, indexed by label."""
        ...

    def name(self, index: int) -> str:
        """The image's path."""
        ...


def read_lfw_pairs(path: str | Path, images: NamedImages) -> PairList:
    """Read a list in the format of LFW's ``pairs.txt``.

    The header is ``folds n`` (``10 300``) or, for one fold, ``n``. Each fold consists of
    n genuine lines ``name number number``, then n impostor lines ``name number name number``. Image
    number 1 of identity ``Name`` is the file ``Name_0001`` with any extension.

    Without a header, as in RFW, the lines are split in order into ten folds, or into one fold per
    pair if there are fewer than ten. Fold sizes then differ by at most one pair.

    Args:
        path: the list.
        images: the labeled images; the returned pairs are indices into them.

    Raises:
        ValueError: a malformed line or missing images; the message gives the line or the names.
    """
    path = Path(path)
    lines = list(read_lines(path))
    first_fields = split_whitespace(lines[0][1].strip()) if lines else []
    if len(first_fields) in (3, 4):  # a pair, so there is no header
        same = [len(split_whitespace(line)) == 3 for _, line in lines]
        folds = min(10, len(lines))
    # A header's numbers must be positive: 0, and None for no number, are false.
    elif len(first_fields) in (1, 2) and all(map(parse_whole_number, first_fields)):
        header = [int(field) for field in first_fields]
        folds, pairs_per_kind = (1, header[0]) if len(header) == 1 else header
        del lines[0]
        if len(lines) != folds * 2 * pairs_per_kind:
            raise ValueError(
                f"{path}: {len(lines)} pairs after the header, which declares {folds} folds of "
                f"2 x {pairs_per_kind} pairs; complete the file or correct its header"
            )
        same = ([True] * pairs_per_kind + [False] * pairs_per_kind) * folds
    else:
        raise malformed(
            path,
            *(lines[0] if lines else (1, "")),
            "a header such as '10 300': 10 folds, each of 300 genuine and 300 impostor pairs",
        )
    pairs = [
        _parse_line(f"{path}:{number}", line, genuine)
        for (number, line), genuine in zip(lines, same, strict=True)
    ]
    index_of = {
        (images.class_names[label], PurePath(images.name(index)).stem): index
        for index, label in enumerate(images.labels)
    }
    first, second = look_up(path, pairs, index_of.get, lambda key: f"{key[0]}/{key[1]}")
    labels = images.labels[np.stack([first, second])]
    return PairList(first, second, np.array(same), folds, _are_disjoint(labels, folds))


def _parse_line(place: str, line: str, genuine: bool) -> list[tuple[str, str]]:
    """Parse the line of a pair; returns (identity, file stem) of each of the two images."""
    parts = split_whitespace(line)
    if len(parts) == 3:
        parts.insert(2, parts[0])
    elif len(parts) == 4 and genuine:
        parts = []  # an impostor line where a genuine one must be: malformed
    if len(parts) != 4 or None in (parse_whole_number(parts[1]), parse_whole_number(parts[3])):
        expected = "name number number" if genuine else "name number name number"
        raise ValueError(f"{place}: {line!r}; expected {expected!r}")
    if not genuine and parts[0] == parts[2]:
        raise ValueError(f"{place}: {line!r}; expected two different identities")
    return [(name, f"{name}_{int(number):04d}") for name, number in (parts[:2], parts[2:])]


def _are_disjoint(labels: np.ndarray, folds: int) -> bool:
    """Whether no two folds share an identity; `labels` is (2, P), two labels per pair."""
    earlier: set[int] = set()
    for fold in np.array_split(labels, folds, axis=1):
        in_fold = set(fold.ravel().tolist())
        if earlier & in_fold:
            return False
        earlier |= in_fold
    return True
