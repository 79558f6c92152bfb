"""Which images to compare: drawn from labels, or read from LFW's list or a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

import numpy as np

from margrave.data.image_folder import ImageFiles
from margrave.files.text import (
    Agreement,
    malformed,
    read_lines,
    read_table,
    split_fields,
    whole_number,
)

_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class PairList:
    """P pairs of images; fold k of cross-validation is the k-th run of P / folds pairs.

    Where P is no multiple of the folds, the first P mod folds have one pair more.

    Attributes:
        first: (P,) int64 indices of one side's images.
        second: (P,) int64 indices of the other side's.
        same: (P,) bool, whether both sides show one identity.
        folds: how many folds the pairs are laid out for.
        identity_disjoint: whether no identity is known to occur in two folds.
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
                "must be one-dimensional and equally long"
            )
        if not 1 <= self.folds <= len(self.same):
            raise ValueError(
                f"{len(self.same)} pairs cannot make {self.folds} folds; give at least one a fold"
            )

    def __len__(self) -> int:
        return len(self.same)


def balanced_pairs(
    labels: np.ndarray, number_of_pairs: int, seed: int = 0, folds: int = 10
) -> PairList:
    """Draw pairs as LFW has them: in each fold as many genuine as impostor pairs, no pair twice.

    Genuine pairs are spread over identities as evenly as their images allow; impostor pairs are
    uniform over all pairs of images of different identities. Identities are dealt to the folds, so
    that no fold shares one with another, where every fold then has pairs enough; otherwise folds
    share identities and ``identity_disjoint`` is false.

    Args:
        labels: (N,) integers, the identity of each image.
        number_of_pairs: a multiple of 2 · folds.
        seed: which pairs.
        folds: how many folds.

    Raises:
        ValueError: not a multiple of 2 · folds, or more pairs than there are, saying how many.

    >>> pairs = balanced_pairs(np.repeat(np.arange(40), 5), 200)
    >>> len(pairs), int(pairs.same.sum()), pairs.identity_disjoint
    (200, 100, True)
    """
    if number_of_pairs < 1 or folds < 1 or number_of_pairs % (2 * folds):
        nearest = max(1, round(number_of_pairs / (2 * folds))) * 2 * folds
        raise ValueError(
            f"number_of_pairs = {number_of_pairs} does not split into {folds} folds of as many "
            f"genuine as impostor pairs; give a multiple of {2 * folds}, {nearest} say"
        )
    generator = np.random.default_rng(seed)
    images_of = _images_by_identity(np.asarray(labels), generator)
    genuine, impostor = _pairs_possible(images_of)
    possible = min(genuine, impostor) // folds * 2 * folds
    if possible < number_of_pairs:
        raise ValueError(
            f"number_of_pairs = {number_of_pairs}, but {len(images_of)} identities with "
            f"{sum(map(len, images_of))} images allow {genuine} genuine and {impostor} impostor "
            f"pairs, hence at most {possible} balanced ones in {folds} folds; "
            + ("ask for fewer or add images" if possible else "add images of the same people")
        )
    half = number_of_pairs // 2
    groups = [images_of[fold::folds] for fold in range(folds)]
    identity_disjoint = all(min(_pairs_possible(group)) >= half // folds for group in groups)
    if not identity_disjoint:
        groups = [images_of]
    each = half // len(groups)
    halves = [
        np.concatenate([draw(group, each, generator) for group in groups]).reshape(folds, -1, 2)
        for draw in (_draw_genuine, _draw_impostor)
    ]
    first, second = np.concatenate(halves, axis=1).reshape(-1, 2).T
    same = np.tile(np.repeat([True, False], half // folds), folds)
    return PairList(first.copy(), second.copy(), same, folds, identity_disjoint)


def _images_by_identity(labels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Each identity's image indices, those with most images first and equals in random order."""
    counts = np.unique(labels, return_counts=True)[1]
    groups = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    shuffled = [groups[which] for which in generator.permutation(len(groups))]
    return sorted(shuffled, key=len, reverse=True)


def _pairs_possible(images_of: Sequence[np.ndarray]) -> tuple[int, int]:
    """How many genuine and how many impostor pairs there are among these identities."""
    sizes = np.array([len(images) for images in images_of], dtype=np.int64)
    genuine = int((sizes * (sizes - 1) // 2).sum())
    return genuine, int(sizes.sum()) * (int(sizes.sum()) - 1) // 2 - genuine


def _draw_genuine(
    images_of: Sequence[np.ndarray], count: int, generator: np.random.Generator
) -> np.ndarray:
    """(count, 2) distinct genuine pairs in random order, as evenly over identities as they go."""
    sizes = np.array([len(images) for images in images_of])
    possible = sizes * (sizes - 1) // 2
    quota = np.zeros_like(possible)
    while missing := count - quota.sum():
        hungry = np.flatnonzero(quota < possible)
        share = missing // len(hungry)
        if share:
            quota[hungry] = np.minimum(possible[hungry], quota[hungry] + share)
        else:
            quota[generator.choice(hungry, missing, replace=False)] += 1
    drawn = []
    for images, wanted, limit in zip(images_of, quota, possible, strict=True):
        if wanted:
            # Number the pairs i < j row by row of j: pair p of row j has p = j(j-1)/2 + i.
            which = generator.choice(limit, wanted, replace=False)
            later = ((1 + np.sqrt(1 + 8.0 * which)) / 2).astype(np.int64)
            earlier = which - later * (later - 1) // 2
            drawn.append(np.stack([images[earlier], images[later]], axis=1))
    return generator.permutation(np.concatenate(drawn))


def _draw_impostor(
    images_of: Sequence[np.ndarray], count: int, generator: np.random.Generator
) -> np.ndarray:
    """(count, 2) distinct impostor pairs, uniform over all of them."""
    images = np.concatenate(images_of)
    sizes = np.array([len(group) for group in images_of])
    # With images grouped by identity, each meets every image that stands before its own group.
    partners = np.repeat(np.cumsum(sizes) - sizes, sizes)
    ends = np.cumsum(partners)
    which = generator.choice(int(ends[-1]), count, replace=False)
    later = np.searchsorted(ends, which, side="right")
    earlier = which - (ends[later] - partners[later])
    return np.stack([images[earlier], images[later]], axis=1)


class Named(Protocol):
    """Images with identities, of which only the names are wanted."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) the class of each image."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """The identity behind each label."""
        ...

    def name(self, index: int) -> str:
        """Where an image lies."""
        ...


def read_lfw_pairs(path: str | Path, image_folder: Named) -> PairList:
    """Read a list in the format of LFW's ``pairs.txt``.

    The first line is ``folds pairs`` (``10 300``) or, for one fold, ``pairs``; then each fold has
    that many genuine lines ``name number number`` and as many impostor lines
    ``name number name number``. Image number 1 of identity ``Name`` is the file ``Name_0001`` with
    any extension. Without a first line (RFW) the lines make ten folds, in their order, whose sizes
    differ by at most one pair (fewer folds if there are fewer pairs).

    Raises:
        ValueError: a malformed line, with file and line number; images the folder lacks, named.
    """
    path = Path(path)
    lines = list(read_lines(path))
    header = _fields(lines[0][1].strip()) if lines else []
    if len(header) in (3, 4):
        same = [len(_fields(line)) == 3 for _, line in lines]
        folds = min(10, len(lines))
    elif len(header) in (1, 2) and all(whole_number(part) for part in header):
        folds, each = (1, int(header[0])) if len(header) == 1 else map(int, header)
        del lines[0]
        if len(lines) != folds * 2 * each:
            raise ValueError(
                f"{path}: {len(lines)} pairs after the header, which promises {folds} x 2 x {each}"
                "; complete the file or correct its header"
            )
        same = ([True] * each + [False] * each) * folds
    else:
        raise malformed(
            path,
            *(lines[0] if lines else (1, "")),
            "'10 300', the number of folds and of genuine (and of impostor) pairs in each",
        )
    sides = [
        _lfw_line(f"{path}:{number}", line, genuine)
        for (number, line), genuine in zip(lines, same, strict=True)
    ]
    index_of = {
        (image_folder.class_names[label], PurePath(image_folder.name(index)).stem): index
        for index, label in enumerate(image_folder.labels)
    }
    first, second = _look_up(path, sides, index_of.get, lambda key: f"{key[0]}/{key[1]}")
    identities = image_folder.labels[np.stack([first, second])]
    return PairList(first, second, np.array(same), folds, _are_disjoint(identities, folds))


def _lfw_line(place: str, line: str, genuine: bool) -> list[tuple[str, str]]:
    """The (identity, file stem) of both sides."""
    parts = _fields(line)
    if len(parts) == 3:
        parts.insert(2, parts[0])
    elif len(parts) == 4 and genuine:
        parts = []
    if len(parts) != 4 or None in (whole_number(parts[1]), whole_number(parts[3])):
        wanted = "name number number" if genuine else "name number name number"
        raise ValueError(f"{place}: {line!r}; expected {wanted!r} here")
    if (parts[0] == parts[2]) != genuine:
        raise ValueError(f"{place}: {line!r}; expected {'one identity' if genuine else 'two'} here")
    return [(name, f"{name}_{int(number):04d}") for name, number in (parts[:2], parts[2:])]


def _fields(line: str) -> list[str]:
    parts = line.split("\t") if "\t" in line else line.split()
    return [part.strip() for part in parts]


def _are_disjoint(identities: np.ndarray, folds: int) -> bool:
    """Whether no identity of (2, P) is in two folds."""
    seen: set[int] = set()
    for fold in np.array_split(identities, folds, axis=1):
        inside = set(fold.ravel().tolist())
        if seen & inside:
            return False
        seen |= inside
    return True


def lists_paths(path: str | Path) -> bool:
    """Whether a list of pairs names files, as `read_csv_pairs` reads it, and not LFW's people.

    A .csv does, and any list whose first line is two paths and 1 or 0. LFW's ``name 1 0`` has a
    number where the second path would be.

    Raises:
        ValueError: a file that cannot be read.
    """
    if Path(path).suffix.lower() == ".csv":
        return True
    _, line = next(read_lines(path), (1, ""))
    return _is_pair_of_paths(_separate(path, 1, line))


def read_csv_pairs(
    path: str | Path, root: str | Path, *, allow_outside: bool = False
) -> tuple[PairList, ImageFiles]:
    """Read a table of pairs with a header line: path_a, path_b, same and optionally fold.

    Paths are relative to ``root``; ``same`` is 1/0, true/false or yes/no. With a ``fold`` column
    the pairs are put in its order and its folds are used, otherwise they keep the file's order and
    make 10 folds (fewer if there are fewer pairs). Further columns are ignored. Without a header,
    each line is two paths and ``same``, with commas, tabs or spaces between them.

    Args:
        path: the list.
        root: the folder of the images.
        allow_outside: let the list name files outside of ``root``, by absolute paths or ``..``.

    Returns:
        The pairs and the images that they index.

    Raises:
        ValueError: no pairs, a missing column, a malformed line (with file and line number), a
            pair labelled both ways (naming both lines), missing images (named), images outside of
            ``root``, folds that differ in size by more than one pair.
    """
    root = Path(root)

    def refuse_outside(number: int, line: str, name: str) -> None:
        if not allow_outside and not _is_below(name, root):
            raise malformed(
                Path(path),
                number,
                line,
                f"images below {root}; write paths relative to it, or allow others "
                "(allow_outside, --allow-outside) if the list is to be trusted",
            )

    names, order_pairs = _read_csv(
        Path(path),
        # Names that are too long for any file are missing ones.
        lambda name: os.path.isfile(root / name),
        lambda name: str(root / name),
        refuse_outside,
    )
    return order_pairs, ImageFiles(root, names)


def _is_below(name: str, root: Path) -> bool:
    """Whether a path stays in a folder as it is spelled; links in the folder are the user's own."""
    if ".." in PurePath(name).parts:
        return False
    return (root / name).is_relative_to(root)


def read_named_pairs(path: str | Path, names: Sequence[str]) -> PairList:
    """Read a table of ``read_csv_pairs``, or LFW's list, whose images are known by name alone.

    Args:
        path: the file; .csv is a table, a list of "path path 1" another, and anything else a list
            in LFW's format.
        names: what images there are; the pairs index them. LFW's list finds ``Name/Name_0001`` by
            its folder's and its own name.

    Raises:
        ValueError: as ``read_csv_pairs`` and ``read_lfw_pairs``.
    """
    path = Path(path)
    if not lists_paths(path):
        return read_lfw_pairs(path, _NamedImages(names))
    index_of = {name: index for index, name in enumerate(names)}
    listed, pairs = _read_csv(path, index_of.__contains__, str)
    own = np.array([index_of[name] for name in listed], np.int64)
    return PairList(own[pairs.first], own[pairs.second], pairs.same, pairs.folds)


class _NamedImages:
    """Just enough of a set of images for ``read_lfw_pairs``: an image's folder is its identity."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        folders = [PurePath(name).parent.name for name in names]
        found, self.labels = np.unique(folders, return_inverse=True)
        self.class_names: Sequence[str] = found.tolist()

    def name(self, index: int) -> str:
        return self._names[index]


def _pair_rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, line and (path_a, path_b, same, fold) of a table or of a list without header."""
    number, line = next(read_lines(path), (1, ""))
    if not _is_pair_of_paths(_separate(path, number, line)):
        yield from read_table(path, ("path_a", "path_b", "same"), ("fold",))
        return
    for number, line in read_lines(path):
        fields = _separate(path, number, line)
        if len(fields) != 3:
            expected = "two paths and 1 or 0; with spaces in a path, put commas or tabs between"
            raise malformed(path, number, line, expected)
        yield number, line, [*fields, ""]


def _separate(path: str | Path, number: int, line: str) -> list[str]:
    """The fields between tabs, else commas, else spaces."""
    return split_fields(path, number, line) if "," in line and "\t" not in line else _fields(line)


def _is_pair_of_paths(fields: Sequence[str]) -> bool:
    """Whether this is two paths and a truth value: the first line of a list without a header."""
    return len(fields) == 3 and fields[2] in ("0", "1") and not fields[1].isdecimal()


def _read_csv(
    path: Path,
    exists: Callable[[str], bool],
    spell: Callable[[str], str],
    check_name: Callable[[int, str, str], None] = lambda number, line, name: None,
) -> tuple[list[str], PairList]:
    """The images that a table names, those that exist, and pairs of them."""
    sides: list[list[str]] = []
    same: list[bool] = []
    fold_of: list[int] = []
    has_folds = False
    agreement = Agreement(path, "the pair", "label")
    for number, line, fields in _pair_rows(path):
        first_name, second_name, truth, fold = fields
        if not sides:
            has_folds = bool(fold)
        known = truth.lower() in _TRUTH and first_name and second_name
        if not known or (fold and whole_number(fold) is None):
            wanted = "two paths, same as 1 or 0" + (", fold as a whole number" * has_folds)
            raise malformed(path, number, line, wanted)
        if bool(fold) != has_folds:
            raise malformed(path, number, line, "a fold on every line or on none")
        genuine = _TRUTH[truth.lower()]
        for name in (first_name, second_name):
            check_name(number, line, name)
        key = tuple(sorted(PurePath(name).as_posix() for name in (first_name, second_name)))
        if key[0] == key[1] and not genuine:
            raise malformed(path, number, line, "an image to show the same person as itself")
        agreement.add(key, genuine, number, line)
        sides.append([first_name, second_name])
        same.append(genuine)
        fold_of.append(int(fold or 0))
    if not sides:
        raise ValueError(f"{path} holds no pairs below its header line")
    names = list(dict.fromkeys(name for side in sides for name in side))
    index_of = {name: index for index, name in enumerate(names) if exists(name)}
    first, second = _look_up(path, sides, index_of.get, spell)
    folds = _count_folds(path, fold_of) if has_folds else min(10, len(sides))
    order = np.argsort(fold_of, kind="stable")
    return names, PairList(first[order], second[order], np.array(same)[order], folds)


def _count_folds(path: Path, fold_of: Sequence[int]) -> int:
    """How many folds; their sizes in ascending order of fold must be those of an even split."""
    sizes = np.unique(fold_of, return_counts=True)[1]
    even = [len(part) for part in np.array_split(fold_of, len(sizes))]
    if sizes.tolist() != even:
        raise ValueError(
            f"{path}: its folds have {sizes.tolist()} pairs; the protocol wants {even}: "
            "move pairs between folds, or remove the column 'fold'"
        )
    return len(sizes)


def _look_up(
    path: Path,
    sides: Sequence[Sequence],
    index_of: Callable[..., int | None],
    spell: Callable[..., str],
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) indices of the first and of the second sides; ValueError naming the images missing."""
    found = [[index_of(key) for key in side] for side in sides]
    missing = list(
        dict.fromkeys(
            spell(key)
            for side, indices in zip(sides, found, strict=True)
            for key, index in zip(side, indices, strict=True)
            if index is None
        )
    )
    if missing:
        more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
        raise ValueError(
            f"{path} names {len(missing)} images that are not there: "
            f"{', '.join(missing[:_NAMES_SHOWN])}{more}; check the folder or the features given"
        )
    first, second = np.array(found, dtype=np.int64).T
    return first.copy(), second.copy()
