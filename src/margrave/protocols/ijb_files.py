"""Readers of the files of IJB-B and IJB-C, as the InsightFace project distributes them."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from margrave.files import open_regular
from margrave.files.folders import list_names, unique_path
from margrave.files.text import (
    MAX_DIGITS,
    ConsistencyCheck,
    is_relative_path,
    malformed,
    parse_whole_number,
    read_lines,
    read_table,
    unreadable,
)
from margrave.protocols.pooled_templates import (
    TemplatePairs,
    TemplateSubjects,
    check_template_pairs,
)

# Field of `IjbFiles` -> how the file's name may end, in lower case.
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
"""Size of the blocks in which `read_template_pairs` reads a file."""
_PAIR_LINES = re.compile(
    rb"(?:(?:[ \t]*+[0-9]{1,%d}+[ \t]++[0-9]{1,%d}+[ \t]++[01])?+[ \t]*+\r?+\n)*+"
    % (MAX_DIGITS, MAX_DIGITS)
)
"""Lines ``template template label`` and blank lines, up to the first malformed line.

The quantifiers are possessive (``*+``), because backtracking over a large block would be slow.
"""


@dataclass(frozen=True, eq=False)
class TemplateImages:
    """The N lines of an image list; each line has an image, its template and its medium.

    An image that is in several templates is on several lines.

    Attributes:
        names: the images' paths.
        templates: (N,) int64 template of each image.
        media: (N,) int64 medium of each image; the frames of a video share one medium.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray


@dataclass(frozen=True, eq=False)
class IjbFiles:
    """The paths of the files of IJB-B or IJB-C.

    Attributes:
        images: the images' templates and media; read by ``read_template_images``.
        pairs: the pairs of the 1:1 protocol; read by ``read_template_pairs``. None if missing.
        landmarks: landmarks and detector scores; read by ``read_landmarks``. None if missing.
        gallery_1: the first gallery of the 1:N protocol; read by ``read_template_subjects``, like
            the second gallery and the probes. None if missing.
        gallery_2: the second gallery of the 1:N protocol; None if missing.
        probe: the probes of the 1:N protocol; None if missing.
    """

    images: Path
    pairs: Path | None
    landmarks: Path | None
    gallery_1: Path | None
    gallery_2: Path | None
    probe: Path | None


def find_ijb_files(folder: str | Path) -> IjbFiles:
    """Find the files of IJB-B or IJB-C in a folder and in its subfolder ``meta``.

    Files are recognized by the end of their names, such as ``_face_tid_mid.txt`` of
    ``ijbc_face_tid_mid.txt``.

    Raises:
        ValueError: the folder does not exist, it has no list of images, several files of one kind,
            or files of both IJB-B and IJB-C.
    """
    folder = Path(folder)
    folders = [folder]
    if "meta" in list_names(folder, folders=True):
        folders.append(folder / "meta")
    files = [directory / name for directory in folders for name in list_names(directory)]
    path_of: dict[str, Path | None] = {}
    file_of_set: dict[str, str] = {}
    for kind, suffixes in _SUFFIXES.items():
        matching = [file for file in files if file.name.lower().endswith(suffixes)]
        path_of[kind] = unique_path(matching, f"*{suffixes[0]}", folder)
        # The rest of the name is the set, such as ijbc. All endings of a kind are equally long.
        for file in matching:
            file_of_set[file.name.lower()[: -len(suffixes[0])]] = file.name
    if len(file_of_set) > 1:
        raise ValueError(
            f"{folder} contains files of several sets: {', '.join(file_of_set.values())}; "
            "put each set into its own folder"
        )
    images = path_of.pop("images")
    if images is None:
        raise ValueError(
            f"neither {folder} nor its subfolder meta contains a file *_face_tid_mid.txt; "
            "give the folder IJBB or IJBC that InsightFace distributes"
        )
    return IjbFiles(images, **path_of)


def read_template_images(path: str | Path) -> TemplateImages:
    """Read the images of each template, as in ``ijbc_face_tid_mid.txt``.

    Each line is ``image template medium`` (``1.jpg 1 69544``).

    Raises:
        ValueError: a line is malformed, an image has two media in one template, or there are no
            lines; the message names the file and lines.
    """
    names: list[str] = []
    templates, media = array("q"), array("q")
    medium_check = ConsistencyCheck(path, "image and template", "medium")
    for line_number, line in read_lines(path):
        fields = line.split()
        numbers = [parse_whole_number(field) for field in fields[1:]]
        if len(fields) != 3 or None in numbers or not is_relative_path(fields[0]):
            raise malformed(
                path,
                line_number,
                line,
                "'1.jpg 1 69544': an image's relative path, its template and its medium",
            )
        template, medium = (value for value in numbers if value is not None)
        medium_check.add((fields[0], template), medium, line_number, line)
        names.append(fields[0])
        templates.append(template)
        media.append(medium)
    if not names:
        raise ValueError(f"{path} names no images; give the file *_face_tid_mid.txt")
    return TemplateImages(tuple(names), np.array(templates), np.array(media))


def read_template_pairs(path: str | Path) -> TemplatePairs:
    """Read the pairs of templates to compare, as in ``ijbc_template_pair_label.txt``.

    Each line is ``template template label``, with label 1 for genuine and 0 for impostor pairs.

    Raises:
        ValueError: a line is malformed, a pair has both labels, or there are no lines; the message
            names the file and lines.
    """
    parsed_blocks = [np.empty((0, 3), np.int64)]
    lines_before = 0
    try:
        with open(path, "rb", opener=open_regular) as file:
            remainder = b""
            while block := file.read(_BLOCK_BYTES):
                if not lines_before and not remainder:
                    # Remove a UTF-8 byte order mark from the beginning of the file.
                    block = block.removeprefix(b"\xef\xbb\xbf")
                complete, newline, remainder = (remainder + block).rpartition(b"\n")
                complete += newline
                parsed_blocks.append(_parse_pairs(path, complete, lines_before))
                lines_before += complete.count(b"\n")
            if remainder:
                parsed_blocks.append(_parse_pairs(path, remainder + b"\n", lines_before))
    except OSError as error:
        raise unreadable(path, error) from None
    first, second, label = (
        np.concatenate([block[:, column] for block in parsed_blocks]) for column in range(3)
    )
    pairs = TemplatePairs(first, second, label == 1)
    check_template_pairs(path, pairs)
    return pairs


def _parse_pairs(path: str | Path, block: bytes, lines_before: int) -> np.ndarray:
    """Parse complete lines into (P, 3) int64: two templates and the label of each pair.

    `lines_before` is the number of the file's lines before the block, for messages.
    """
    match = _PAIR_LINES.match(block)
    valid_end = match.end() if match else 0
    if valid_end < len(block):
        line = (
            block[valid_end : block.index(b"\n", valid_end)]
            .rstrip(b"\r")
            .decode("utf-8", "replace")
        )
        line_number = lines_before + block.count(b"\n", 0, valid_end) + 1
        expected = "'1 2 0': two templates, and 1 for the same subject or 0 for different ones"
        raise malformed(path, line_number, line, expected)
    if not block.strip():
        return np.empty((0, 3), np.int64)
    return np.fromstring(block, dtype=np.int64, sep=" ").reshape(-1, 3)


def read_template_subjects(path: str | Path) -> TemplateSubjects:
    """Read the templates of a gallery or of the probes, as in ``ijbc_1N_probe_mixed.csv``.

    The header line must contain the columns TEMPLATE_ID and SUBJECT_ID, in upper or lower case and
    in any order. Each further line describes one image, so a template has one line per image.

    Raises:
        ValueError: a column is missing, a line is malformed, a template has two subjects, or there
            are no lines; the message names the file and lines.
    """
    subject_of: dict[int, int] = {}
    subject_check = ConsistencyCheck(path, "template", "subject")
    for line_number, line, fields in read_table(path, ("template_id", "subject_id")):
        template, subject = map(parse_whole_number, fields)
        if template is None or subject is None:
            raise malformed(path, line_number, line, "whole numbers as TEMPLATE_ID and SUBJECT_ID")
        subject_check.add(template, subject, line_number, line)
        subject_of[template] = subject
    if not subject_of:
        raise ValueError(f"{path} holds no templates below its header line; check the file")
    return TemplateSubjects(
        np.array(list(subject_of), dtype=np.int64),
        np.array(list(subject_of.values()), dtype=np.int64),
    )
