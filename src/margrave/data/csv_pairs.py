"""Read pair lists that give image paths.

A list is either a CSV table with a header line, or has lines of two paths followed by 1 or 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

import numpy as np

from margrave.data.image_folder import ImageFiles
from margrave.data.lfw_pairs import read_lfw_pairs
from margrave.data.pair_lists import PairList, look_up, split_whitespace
from margrave.files.text import (
    ConsistencyCheck,
    malformed,
    parse_whole_number,
    read_lines,
    read_table,
    split_fields,
)

_SAME_VALUES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def is_path_list(path: str | Path) -> bool:
    """Whether a pair list gives image paths (see `read_csv_pairs`) instead of LFW identities.

    True for a .csv file, and for a list whose first line is two paths followed by 1 or 0. A line
    such as ``name 1 0`` is in LFW's format, because its second field is a number, not a path.

    Raises:
        ValueError: the file cannot be read.
    """
    if Path(path).suffix.lower() == ".csv":
        return True
    # An empty file counts as one empty line.
    _, line = next(read_lines(path), (1, ""))
    return _is_pair_of_paths(_split_line(path, 1, line))


def read_csv_pairs(
    path: str | Path, root: str | Path, *, allow_outside: bool = False
) -> tuple[PairList, ImageFiles]:
    """Read a CSV table of pairs with a header line: path_a, path_b, same and optionally fold.

    Paths are relative to ``root``; ``same`` is 1/0, true/false or yes/no. With a ``fold`` column
    the pairs are sorted by fold; otherwise they keep the file's order and are split into 10 folds
    (one per pair if there are fewer than 10 pairs). Other columns are ignored. Without a header,
    each line is two paths and ``same`` as 1 or 0, separated by commas, tabs or spaces.

    Args:
        path: the pair list.
        root: the image folder.
        allow_outside: allow files outside ``root``, by absolute paths or ``..``.

    Returns:
        The pairs and the images they index.

    Raises:
        ValueError: no pairs, a missing column, a malformed line, a pair with contradictory labels,
            missing images, images outside ``root``, or folds of uneven size (see `PairList`). The
            message gives the lines or images.
    """
    root = Path(root)

    def refuse_outside(line_number: int, line: str, name: str) -> None:
        if not allow_outside and not _is_below(name, root):
            raise malformed(
                Path(path),
                line_number,
                line,
                f"an image below {root}; write paths relative to it, or allow paths "
                "outside it (allow_outside, --allow-outside) if you trust the list",
            )

    names, pairs = _read_path_list(
        Path(path),
        # os.path.isfile returns False for overlong names; Path.is_file may raise an error.
        lambda name: os.path.isfile(root / name),
        lambda name: str(root / name),
        refuse_outside,
    )
    return pairs, ImageFiles(root, names)


def _is_below(name: str, root: Path) -> bool:
    """Whether a path, as written, stays in a folder; symbolic links are not resolved."""
    if ".." in PurePath(name).parts:
        return False
    return (root / name).is_relative_to(root)


def read_pairs_by_path(path: str | Path, names: Sequence[str]) -> PairList:
    """Read a pair list for images that are known only by their paths.

    Args:
        path: the list: a .csv table, lines "path path 1" or "path path 0", or LFW's format.
        names: path of each image; the returned pairs are indices into this sequence. A list in
            LFW's format refers to an image by its folder and file stem, ``Name/Name_0001``.

    Raises:
        ValueError: see ``read_csv_pairs`` and ``read_lfw_pairs``.
    """
    path = Path(path)
    if not is_path_list(path):
        return read_lfw_pairs(path, _ImagesByPath(names))
    index_of = {name: index for index, name in enumerate(names)}
    listed_names, pairs = _read_path_list(path, index_of.__contains__, str)
    indices = np.array([index_of[name] for name in listed_names], np.int64)
    return PairList(indices[pairs.first], indices[pairs.second], pairs.same, pairs.folds)


class _ImagesByPath:
    """`NamedImages` made from paths alone; the name of an image's folder is its identity."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        folders = [PurePath(name).parent.name for name in names]
        identities, self.labels = np.unique(folders, return_inverse=True)
        self.class_names: Sequence[str] = identities.tolist()

    def name(self, index: int) -> str:
        return self._names[index]


def _read_rows(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield (line number, line, [path_a, path_b, same, fold]) per pair; fold is "" if not given."""
    line_number, line = next(read_lines(path), (1, ""))
    if not _is_pair_of_paths(_split_line(path, line_number, line)):
        yield from read_table(path, ("path_a", "path_b", "same"), ("fold",))
        return
    for line_number, line in read_lines(path):
        fields = _split_line(path, line_number, line)
        if len(fields) != 3:
            expected = (
                "two paths and 1 or 0; if a path contains spaces, separate fields by commas or tabs"
            )
            raise malformed(path, line_number, line, expected)
        yield line_number, line, [*fields, ""]


def _split_line(path: str | Path, line_number: int, line: str) -> list[str]:
    """Split a line at tabs if it has any, otherwise at commas, otherwise at spaces."""
    return (
        split_fields(path, line_number, line)
        if "," in line and "\t" not in line
        else split_whitespace(line)
    )


def _is_pair_of_paths(fields: Sequence[str]) -> bool:
    """Whether the fields are two paths followed by 1 or 0, as in a list without a header."""
    return len(fields) == 3 and fields[2] in ("0", "1") and not fields[1].isdecimal()


def _read_path_list(
    path: Path,
    exists: Callable[[str], bool],
    format_name: Callable[[str], str],
    check_name: Callable[[int, str, str], None] = lambda line_number, line, name: None,
) -> tuple[list[str], PairList]:
    """Read a pair list; returns the names of its images, and pairs of indices into these names.

    Args:
        path: the list.
        exists: called with an image's name; returns whether the image exists.
        format_name: formats the name of a missing image for messages.
        check_name: called with (line number, line, name); raises an error if the name is not
            allowed.
    """
    pairs: list[list[str]] = []
    same: list[bool] = []
    fold_of: list[int] = []
    has_folds = False
    consistency = ConsistencyCheck(path, "the pair", "label")
    for line_number, line, fields in _read_rows(path):
        first_name, second_name, same_text, fold = fields
        if not pairs:  # the first pair decides whether all pairs must give a fold
            has_folds = bool(fold)
        is_valid = same_text.lower() in _SAME_VALUES and first_name and second_name
        if not is_valid or (fold and parse_whole_number(fold) is None):
            expected = "two paths, 'same' (1 or 0)" + (", 'fold' (a whole number)" * has_folds)
            raise malformed(path, line_number, line, expected)
        if bool(fold) != has_folds:
            raise malformed(path, line_number, line, "a fold either on every line or on no line")
        genuine = _SAME_VALUES[same_text.lower()]
        for name in (first_name, second_name):
            check_name(line_number, line, name)
        key = tuple(sorted(PurePath(name).as_posix() for name in (first_name, second_name)))
        if key[0] == key[1] and not genuine:
            raise malformed(path, line_number, line, "an image to have the same identity as itself")
        consistency.add(key, genuine, line_number, line)
        pairs.append([first_name, second_name])
        same.append(genuine)
        fold_of.append(int(fold or 0))
    if not pairs:
        raise ValueError(f"{path} contains no pairs below its header line")
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    index_of = {name: index for index, name in enumerate(names) if exists(name)}
    first, second = look_up(path, pairs, index_of.get, format_name)
    folds = _count_folds(path, fold_of) if has_folds else min(10, len(pairs))
    order = np.argsort(fold_of, kind="stable")
    return names, PairList(first[order], second[order], np.array(same)[order], folds)


def _count_folds(path: Path, fold_of: Sequence[int]) -> int:
    """The number of folds; raises an error unless they are as even as those of a `PairList`."""
    sizes = np.unique(fold_of, return_counts=True)[1]
    even_sizes = [len(fold) for fold in np.array_split(fold_of, len(sizes))]
    if sizes.tolist() != even_sizes:
        raise ValueError(
            f"{path}: the folds have {sizes.tolist()} pairs but must have {even_sizes}; "
            "move pairs between folds, or remove the column 'fold'"
        )
    return len(sizes)
