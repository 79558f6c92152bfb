"""IJB-B and IJB-C as the InsightFace project distributes them."""

from __future__ import annotations

import math
import re
from array import array
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from margrave.files import ordinary
from margrave.files.folders import entries, only_one
from margrave.files.text import (
    DECIMAL,
    MOST_DIGITS,
    Agreement,
    is_relative_path,
    malformed,
    read_lines,
    read_table,
    unreadable,
    whole_number,
)

_SUFFIXES = {
    "images": ("_face_tid_mid.txt",),
    "pairs": ("_template_pair_label.txt",),
    "landmarks": ("_name_5pts_score.txt",),
    # IJB-B calls its galleries S1 and S2, IJB-C G1 and G2.
    "gallery_1": ("_1n_gallery_g1.csv", "_1n_gallery_s1.csv"),
    "gallery_2": ("_1n_gallery_g2.csv", "_1n_gallery_s2.csv"),
    "probe": ("_1n_probe_mixed.csv",),
}
_BLOCK_BYTES = 2**24
_PAIR_LINES = re.compile(
    rb"(?:(?:[ \t]*+[0-9]{1,%d}+[ \t]++[0-9]{1,%d}+[ \t]++[01])?+[ \t]*+\r?+\n)*+"
    % (MOST_DIGITS, MOST_DIGITS)
)
_LANDMARK_NUMBERS = 11
_LANDMARK_LINE = re.compile(rf"\s*+\S++(?:\s++{DECIMAL}){{{_LANDMARK_NUMBERS}}}\s*+")


@dataclass(frozen=True, eq=False)
class TemplateImages:
    """N images, each a medium's part of a template.

    Attributes:
        names: the images' paths.
        templates: (N,) int64 template of each image.
        media: (N,) int64 medium of each image; the frames of one video share theirs.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """P pairs of templates.

    Attributes:
        first: (P,) int64 template of one side.
        second: (P,) int64 template of the other.
        same: (P,) bool, whether both are of one subject.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


@dataclass(frozen=True, eq=False)
class Landmarks:
    """N images' five points and detector scores.

    Attributes:
        names: the images' paths.
        points: (N, 5, 2) float64 x and y of eyes, nose and mouth corners.
        scores: (N,) float64, how sure the detector was.
    """

    names: tuple[str, ...]
    points: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplateSubjects:
    """T templates of known subjects.

    Attributes:
        templates: (T,) int64, each once, in order of appearance.
        subjects: (T,) int64 subject of each.
    """

    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True, eq=False)
class IjbFiles:
    """Where the files of one of the sets lie.

    Attributes:
        images: templates and media of the images, for ``read_template_images``.
        pairs: the 1:1 protocol, for ``read_template_pairs``, or None.
        landmarks: points and detector scores, for ``read_landmarks``, or None.
        gallery_1: the 1:N protocol's first gallery, for ``read_template_subjects``, or None.
        gallery_2: its second gallery, or None.
        probe: its probes, or None.
    """

    images: Path
    pairs: Path | None
    landmarks: Path | None
    gallery_1: Path | None
    gallery_2: Path | None
    probe: Path | None


def find_ijb_files(folder: str | Path) -> IjbFiles:
    """Find the files of IJB-B or IJB-C in a folder and in its folder ``meta``.

    Files are known by how their names end, ``ijbc_face_tid_mid.txt`` by ``_face_tid_mid.txt``.

    Raises:
        ValueError: no such folder, no list of images, two files of one kind (named), or files of
            two sets.
    """
    folder = Path(folder)
    places = [folder]
    if "meta" in entries(folder, folders=True):
        places.append(folder / "meta")
    files = [place / name for place in places for name in entries(place)]
    found: dict[str, Path | None] = {}
    named_by_set: dict[str, str] = {}
    for kind, suffixes in _SUFFIXES.items():
        matching = [file for file in files if file.name.lower().endswith(suffixes)]
        found[kind] = only_one(matching, f"*{suffixes[0]}", folder)
        for file in matching:
            named_by_set[file.name.lower()[: -len(suffixes[0])]] = file.name
    if len(named_by_set) > 1:
        raise ValueError(
            f"{folder} holds files of several sets: {', '.join(named_by_set.values())}; "
            "give each set a folder of its own"
        )
    images = found.pop("images")
    if images is None:
        raise ValueError(
            f"{folder} holds no file *_face_tid_mid.txt, nor does its folder meta; "
            "give the folder IJBB or IJBC that InsightFace distributes"
        )
    return IjbFiles(images, **found)


def read_template_images(path: str | Path) -> TemplateImages:
    """Read which images make which template, as in ``ijbc_face_tid_mid.txt``.

    Each line is ``image template medium`` (``1.jpg 1 69544``).

    Raises:
        ValueError: a malformed line, with file and line number; an image that is in one template
            as of two media, naming both lines; no lines.
    """
    names: list[str] = []
    templates, media = array("q"), array("q")
    agreement = Agreement(path, "image and template", "medium")
    for number, line in read_lines(path):
        fields = line.split()
        numbers = [whole_number(field) for field in fields[1:]]
        if len(fields) != 3 or None in numbers or not is_relative_path(fields[0]):
            raise malformed(
                path, number, line, "'1.jpg 1 69544', an image's relative path, template and medium"
            )
        template, medium = (value for value in numbers if value is not None)
        agreement.add((fields[0], template), medium, number, line)
        names.append(fields[0])
        templates.append(template)
        media.append(medium)
    if not names:
        raise ValueError(f"{path} names no images; give the file *_face_tid_mid.txt")
    return TemplateImages(tuple(names), np.array(templates), np.array(media))


def read_template_pairs(path: str | Path) -> TemplatePairs:
    """Read which templates to compare, as in ``ijbc_template_pair_label.txt``.

    Each line is ``template template label``, with label 1 for one subject and 0 for two.

    Raises:
        ValueError: a malformed line, with file and line number; a pair labelled both ways, naming
            both lines; no lines.
    """
    parts = [np.empty((0, 3), np.int64)]
    lines_before = 0
    try:
        with open(path, "rb", opener=ordinary) as file:
            rest = b""
            while block := file.read(_BLOCK_BYTES):
                if not lines_before and not rest:
                    block = block.removeprefix(b"\xef\xbb\xbf")
                block, newline, rest = (rest + block).rpartition(b"\n")
                parts.append(_parse_pairs(path, block + newline, lines_before))
                lines_before += block.count(b"\n") + len(newline)
            if rest:
                parts.append(_parse_pairs(path, rest + b"\n", lines_before))
    except OSError as error:
        raise unreadable(path, error) from None
    first, second, same = (np.concatenate([part[:, side] for part in parts]) for side in range(3))
    pairs = TemplatePairs(first, second, same == 1)
    check_template_pairs(path, pairs)
    return pairs


def _parse_pairs(path: str | Path, block: bytes, lines_before: int) -> np.ndarray:
    """(P, 3) int64 of the lines of a block."""
    match = _PAIR_LINES.match(block)
    end = match.end() if match else 0
    if end < len(block):
        line = block[end : block.index(b"\n", end)].rstrip(b"\r").decode("utf-8", "replace")
        number = lines_before + block.count(b"\n", 0, end) + 1
        expected = "'1 2 0', two templates and 1 where they are of one subject, otherwise 0"
        raise malformed(path, number, line, expected)
    if not block.strip():
        return np.empty((0, 3), np.int64)
    return np.fromstring(block, dtype=np.int64, sep=" ").reshape(-1, 3)


def check_template_pairs(path: str | Path, pairs: TemplatePairs, lines_above: int = 0) -> None:
    """Refuse pairs that their file labels both ways.

    Args:
        path: the file.
        pairs: what its lines say, in their order.
        lines_above: how many lines stand above that of the first pair, not counting blank ones.

    Raises:
        ValueError: no pairs, or a pair labelled both ways, naming both lines.
    """
    if not len(pairs.same):
        raise ValueError(f"{path} holds no pairs of templates; add some, or give another file")
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    if 2 * (int(high.max()) + 1) ** 2 >= 2**63:
        codes = np.unique(np.concatenate([low, high]), return_inverse=True)[1]
        low, high = codes[: len(low)], codes[len(low) :]
    keys = 2 * (low * (int(high.max()) + 1) + high) + pairs.same
    ordered = np.sort(keys)
    # The two labels of one pair differ in the last bit alone, hence are neighbours.
    contradictory = np.flatnonzero(ordered[1:] ^ ordered[:-1] == 1)
    if len(contradictory):
        key = ordered[contradictory[0]]
        one, other = sorted(int(np.argmax(keys == wanted)) for wanted in (key, key ^ 1))
        lines = islice(read_lines(path), lines_above + one, None)
        earlier = next(lines)[0]
        number, line = next(islice(lines, other - one - 1, None))
        raise malformed(
            path, number, line, f"the pair to have the label of line {earlier}; correct one of them"
        )


def read_landmarks(path: str | Path) -> Landmarks:
    """Read the points by which images are aligned, as in ``ijbc_name_5pts_score.txt``.

    Each line is an image, x and y of five points, and the detector's score.

    Raises:
        ValueError: a malformed line, with file and line number; an image that has two sets of
            numbers, naming both lines; no lines.
    """
    names: list[str] = []
    rows: list[bytes] = []
    agreement = Agreement(path, "image", "set of points and score")
    for number, line in read_lines(path):
        name, *fields = line.split()
        well_formed = _LANDMARK_LINE.fullmatch(line) and is_relative_path(name)
        values = array("d", map(float, fields) if well_formed else ())
        if not well_formed or not all(map(math.isfinite, values)):
            raise malformed(
                path, number, line, "an image's relative path and x1 y1 x2 y2 … x5 y5 score"
            )
        row = values.tobytes()
        agreement.add(name, row, number, line)
        names.append(name)
        rows.append(row)
    if not names:
        raise ValueError(f"{path} names no images; give the file *_name_5pts_score.txt")
    numbers = np.frombuffer(b"".join(rows)).reshape(-1, _LANDMARK_NUMBERS)
    points = numbers[:, :-1].reshape(-1, 5, 2).copy()
    return Landmarks(tuple(names), points, numbers[:, -1].copy())


def read_template_subjects(path: str | Path) -> TemplateSubjects:
    """Read whose templates are searched for or in, as in ``ijbc_1N_probe_mixed.csv``.

    A header line names columns TEMPLATE_ID and SUBJECT_ID, in any case and order, among others;
    each line below is an image, so that a template stands on as many lines as it has images.

    Raises:
        ValueError: a missing column, a malformed line (with file and line number), a template of
            two subjects (naming both lines), no lines.
    """
    subject_of: dict[int, int] = {}
    agreement = Agreement(path, "template", "subject")
    for number, line, fields in read_table(path, ("template_id", "subject_id")):
        template, subject = map(whole_number, fields)
        if template is None or subject is None:
            raise malformed(path, number, line, "whole numbers as TEMPLATE_ID and SUBJECT_ID")
        agreement.add(template, subject, number, line)
        subject_of[template] = subject
    if not subject_of:
        raise ValueError(f"{path} holds no templates below its header line; give another file")
    return TemplateSubjects(
        np.array(list(subject_of), dtype=np.int64),
        np.array(list(subject_of.values()), dtype=np.int64),
    )
