"""YouTube Faces: pairs of videos, and the frames of each video."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath

import numpy as np

from margrave.data.image_folder import image_paths
from margrave.files.text import (
    Agreement,
    is_relative_path,
    malformed,
    read_lines,
    some_of,
    split_fields,
    whole_number,
)

_HEADER = "split number, pair number in split, first name, second name, is same"


@dataclass(frozen=True, eq=False)
class VideoPairs:
    """P pairs of videos in folds.

    Attributes:
        first: one side's videos, each as the path of its folder.
        second: the other side's.
        same: (P,) bool, whether both show one person.
        fold: (P,) int64, ascending from 0; the folds are those of an even split.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: np.ndarray
    fold: np.ndarray


def read_youtube_pairs(path: str | Path) -> VideoPairs:
    """Read which videos to compare, as in ``splits.txt``.

    The first line names the columns; ``first name`` and ``second name`` are the videos. The first
    column is the number of the fold and the last says 1 for one person and 0 for two, so that the
    corrected labels in a further last column count. A line is
    ``1, 1, Sadie_Frost/1, Sadie_Frost/5, 1``.

    Raises:
        ValueError: a header without these columns, a malformed line (with file and line number), a
            pair labelled both ways (naming both lines), folds that are not each in one piece or
            differ in size by more than one pair, no pairs.
    """
    lines = read_lines(path)
    number, header = next(lines, (1, ""))
    columns = [_plain(name) for name in split_fields(path, number, header)]
    if not {"first name", "second name"} <= set(columns[1:-1]):
        raise malformed(path, number, header, f"a header line {_HEADER!r}; begin the file with it")
    sides = [columns.index(name) for name in ("first name", "second name")]
    first, second, same, splits = [], [], [], []
    agreement = Agreement(path, "the pair", "label")
    for number, line in lines:
        fields = split_fields(path, number, line)
        split = whole_number(fields[0])
        if len(fields) != len(columns) or split is None or fields[-1] not in ("0", "1"):
            raise malformed(path, number, line, f"fields as in the header line {header!r}")
        videos = [fields[side] for side in sides]
        if not all(map(is_relative_path, videos)):
            raise malformed(path, number, line, "two videos as 'Name/number'")
        agreement.add(tuple(sorted(videos)), fields[-1], number, line)
        first.append(videos[0])
        second.append(videos[1])
        same.append(fields[-1] == "1")
        splits.append(split)
    if not same:
        raise ValueError(f"{path} holds no pairs below its header line; give the file splits.txt")
    return VideoPairs(tuple(first), tuple(second), np.array(same), _number_folds(path, splits))


def _plain(column: str) -> str:
    """A column's name as others spell it: 'Is_Same:' is 'is same'."""
    return re.sub(r"[_\s]+", " ", column.lower()).strip(" :")


def _number_folds(path: str | Path, splits: list[int]) -> np.ndarray:
    """(P,) int64 fold of each pair; the folds must be those of an even split."""
    runs = [(split, len(list(run))) for split, run in groupby(splits)]
    sizes = [size for _, size in runs]
    if len({split for split, _ in runs}) < len(runs):
        raise ValueError(
            f"{path}: a fold's pairs do not stand together; sort the lines by their first column"
        )
    even = [len(part) for part in np.array_split(splits, len(runs))]
    if sizes != even:
        raise ValueError(
            f"{path}: its folds have {some_of([str(size) for size in sizes])} pairs; the protocol "
            f"wants {some_of([str(size) for size in even])}: complete the file"
        )
    return np.repeat(np.arange(len(runs), dtype=np.int64), sizes)


def frames_of_videos(root: str | Path, videos: Iterable[str]) -> dict[str, list[str]]:
    """Find each video's frames, in natural order.

    Args:
        root: the folder of the persons' folders, such as ``aligned_images_DB``.
        videos: their folders relative to ``root`` (``Sadie_Frost/1``); repeated ones count once.

    Returns:
        The videos' frames as paths relative to ``root``.

    Raises:
        ValueError: no such folder, or videos without images, named.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder of the persons' folders")
    frames: dict[str, list[str]] = {}
    for video in dict.fromkeys(videos):
        if not is_relative_path(video):
            raise ValueError(f"the video {video!r} is not a folder below {root}; expected 'Name/0'")
        frames[video] = [PurePath(path).as_posix() for path in image_paths(root, root / video)]
    if missing := [video for video, paths in frames.items() if not paths]:
        raise ValueError(
            f"{root} has no images of {len(missing)} videos: {some_of(missing)}; "
            "check the folder given, or unpack the images again"
        )
    return frames
