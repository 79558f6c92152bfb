"""YouTube Faces: verification of pairs of videos, whose frames are pooled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePath
from typing import ClassVar

import numpy as np

from margrave.evaluation import Pooling, Result, evaluate_pairs, pool_templates
from margrave.files import listed
from margrave.files.text import (
    ConsistencyCheck,
    is_relative_path,
    malformed,
    parse_whole_number,
    read_lines,
    split_fields,
)
from margrave.inference import Features
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol

_HEADER = "split number, pair number in split, first name, second name, is same"


@PROTOCOLS.register("youtube")
class YouTube(Protocol):
    """Verify pairs of videos, whose frames are pooled (YTF).

    The features are those of the frames, named ``Person/number/frame.jpg`` with the video's number.
    Pairs of videos are evaluated by LFW's protocol.

    Source: Wolf, Hassner, Maoz, "Face recognition in unconstrained videos" (2011), the restricted
    protocol.
    """

    positional: ClassVar[tuple[str, ...]] = ("splits",)

    splits: Path
    """YTF's file splits.txt."""

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Evaluate the features and return one result."""
        pairs = read_youtube_pairs(self.splits)
        frames_of: dict[str, list[int]] = {}
        for row in features.readable_rows.tolist():
            video = PurePath(features.name(row)).parent.as_posix()
            frames_of.setdefault(video, []).append(row)
        videos = list(dict.fromkeys((*pairs.first, *pairs.second)))
        if missing := [video for video in videos if video not in frames_of]:
            raise ValueError(
                f"{features.display_name} has no frames of {len(missing)} videos that "
                f"{self.splits} lists, such as {missing[0]}; its images have names such as "
                f"{features.name(0)!r}"
            )
        # Each video is one template with one medium, so pooling takes the mean of its frames.
        template_of_frame = np.repeat(
            np.arange(len(videos)), [len(frames_of[video]) for video in videos]
        )
        pooling = Pooling(flip=features.flipped is not None)
        _, pooled = pool_templates(
            features.embeddings,
            template_of_frame,
            np.zeros_like(template_of_frame),
            flipped=features.flipped,
            rows=np.concatenate([frames_of[video] for video in videos]),
            pooling=pooling,
        )
        row_of = {video: row for row, video in enumerate(videos)}
        first, second = (
            np.array([row_of[video] for video in side]) for side in (pairs.first, pairs.second)
        )
        # A video's identity is its top folder. Corrected labels may contradict these identities;
        # then the bootstrap resamples pairs.
        identity_names = [PurePath(video).parts[0] for video in videos]
        identity_of_video = np.unique(identity_names, return_inverse=True)[1]
        identities = np.stack([identity_of_video[first], identity_of_video[second]], axis=1)
        consistent = ((identities[:, 0] == identities[:, 1]) == pairs.same).all()
        result = evaluate_pairs(
            pooled[first],
            pooled[second],
            pairs.same,
            int(pairs.fold.max()) + 1,
            identities if consistent else None,
            resamples=options.resamples,
        )
        rules = f"{result.rules}; videos pooled, {pooling.code}"
        return [replace(result, rules=rules).result("YTF")]


@dataclass(frozen=True, eq=False)
class VideoPairs:
    """P pairs of videos in folds.

    Attributes:
        first: each pair's first video, as the path of its folder.
        second: each pair's second video.
        same: (P,) bool, whether both videos show the same identity.
        fold: (P,) int64 fold of each pair, ascending from 0. Fold sizes differ by at most one pair,
            and larger folds come first.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: np.ndarray
    fold: np.ndarray


def read_youtube_pairs(path: str | Path) -> VideoPairs:
    """Read the pairs of videos to compare, as in ``splits.txt``.

    The first line is the header; the columns ``first name`` and ``second name`` hold the videos.
    The first column is the fold's number (YTF's split number). The last column, whatever its name,
    is the label: 1 for genuine and 0 for impostor pairs. So corrected labels can be appended as a
    further column. A line looks like ``1, 1, Sadie_Frost/1, Sadie_Frost/5, 1``.

    Raises:
        ValueError: a column is missing, a line is malformed, a pair has both labels, a fold's lines
            are not contiguous, the folds' sizes are not as in ``VideoPairs``, or there are no
            pairs; the message names the file and, for a malformed line, the line.
    """
    lines = read_lines(path)
    line_number, header = next(lines, (1, ""))
    columns = [_normalize_column(name) for name in split_fields(path, line_number, header)]
    if not {"first name", "second name"} <= set(columns[1:-1]):
        raise malformed(
            path, line_number, header, f"a header line {_HEADER!r}; begin the file with it"
        )
    video_columns = [columns.index(name) for name in ("first name", "second name")]
    first, second, same, splits = [], [], [], []
    pair_label = ConsistencyCheck(path, "the pair", "label")
    for line_number, line in lines:
        fields = split_fields(path, line_number, line)
        split = parse_whole_number(fields[0])
        if len(fields) != len(columns) or split is None or fields[-1] not in ("0", "1"):
            expected = f"fields as in the header line {header!r}: a whole number first, 0 or 1 last"
            raise malformed(path, line_number, line, expected)
        videos = [fields[column] for column in video_columns]
        if not all(map(is_relative_path, videos)):
            raise malformed(path, line_number, line, "two videos as 'Name/number'")
        pair_label.add(tuple(sorted(videos)), fields[-1], line_number, line)
        first.append(videos[0])
        second.append(videos[1])
        same.append(fields[-1] == "1")
        splits.append(split)
    if not same:
        raise ValueError(f"{path} holds no pairs below its header line; give the file splits.txt")
    return VideoPairs(tuple(first), tuple(second), np.array(same), _number_folds(path, splits))


def _normalize_column(column: str) -> str:
    """Spell a column's name uniformly: 'Is_Same:' becomes 'is same'."""
    return re.sub(r"[_\s]+", " ", column.lower()).strip(" :")


def _number_folds(path: str | Path, splits: list[int]) -> np.ndarray:
    """(P,) int64 fold of each pair; check that the folds are as in ``VideoPairs``.

    Args:
        path: the file, for messages.
        splits: (P,) YTF's split number of each pair.
    """
    folds = [(split, len(list(fold))) for split, fold in groupby(splits)]
    sizes = [size for _, size in folds]
    if len({split for split, _ in folds}) < len(folds):
        raise ValueError(
            f"{path}: a fold's lines are not contiguous; sort the lines by their first column"
        )
    # `evaluate_pairs` splits the pairs in the same way.
    expected_sizes = [len(fold) for fold in np.array_split(splits, len(folds))]
    if sizes != expected_sizes:
        raise ValueError(
            f"{path}: the folds have {listed(map(str, sizes), 5)} pairs; the protocol "
            f"requires {listed(map(str, expected_sizes), 5)}; add the missing lines"
        )
    return np.repeat(np.arange(len(folds), dtype=np.int64), sizes)
