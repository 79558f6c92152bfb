"""Margrave's own tables, for test sets that have no files of their own."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from margrave.data.image_folder import natural_sort
from margrave.data.protocol_files.ijb import TemplatePairs, check_template_pairs
from margrave.files.folders import entries, folders_within
from margrave.files.text import (
    Agreement,
    finite_number,
    is_relative_path,
    malformed,
    read_table,
    whole_number,
)

_ROLES = ("gallery", "probe", "distractor")
_TEMPLATE_ROLES = ("gallery_1", "gallery_2", "probe", "")
_NOBODY = -1
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_PAIRS_SUFFIX = "_pairs.txt"
_PACKED_SUFFIX = ".bin"


@dataclass(frozen=True, eq=False)
class IdentificationTable:
    """N images to search for or in.

    Attributes:
        names: the images' paths.
        identities: (N,) int64 in order of appearance, -1 for distractors of nobody known.
        identity_names: what the table calls each identity.
        roles: (N,) str: ``gallery``, ``probe`` or ``distractor``.
    """

    names: tuple[str, ...]
    identities: np.ndarray
    identity_names: tuple[str, ...]
    roles: np.ndarray


@dataclass(frozen=True, eq=False)
class TemplateTable:
    """N images, each a medium's part of a template of a subject.

    Attributes:
        names: the images' paths.
        templates: (N,) int64 template of each image.
        media: (N,) int64 medium of each image.
        subjects: (N,) int64 subject of each image's template, in order of appearance.
        subject_names: what the table calls each subject.
        scores: (N,) float64 detector score of each image, NaN where the table has none.
        roles: (N,) str: ``gallery_1``, ``gallery_2``, ``probe``, or empty.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    media: np.ndarray
    subjects: np.ndarray
    subject_names: tuple[str, ...]
    scores: np.ndarray
    roles: np.ndarray


def read_identification_table(path: str | Path) -> IdentificationTable:
    """Read a table with a header line: path, identity and role.

    ``role`` is gallery, probe or distractor. A distractor's identity may be empty, and none may be
    that of a gallery image or a probe. Further columns are ignored.

    Raises:
        ValueError: a missing column, a malformed line (with file and line number), an image that
            stands on two lines or an identity both of distractors and of others (naming both
            lines), no gallery or no probes.
    """
    names: dict[str, int] = {}
    number_of: dict[str, int] = {}
    identities, roles = [], []
    agreement = Agreement(path, "identity", "part (distractor or not)")
    for number, line, (name, identity, role) in read_table(path, ("path", "identity", "role")):
        if not is_relative_path(name) or role not in _ROLES:
            expected = f"a relative path, an identity and one of {', '.join(_ROLES)}"
            raise malformed(path, number, line, expected)
        if not identity and role != "distractor":
            raise malformed(path, number, line, f"an identity, which a {role} must have")
        if names.setdefault(name, number) != number:
            raise malformed(
                path, number, line, f"each image once, but it stands on line {names[name]} too"
            )
        if identity:
            agreement.add(identity, role == "distractor", number, line)
            number_of.setdefault(identity, len(number_of))
        identities.append(number_of[identity] if identity else _NOBODY)
        roles.append(role)
    if missing := [role for role in ("gallery", "probe") if role not in roles]:
        raise ValueError(f"{path} holds no image of role {' nor '.join(missing)}; add some")
    return IdentificationTable(
        tuple(names), np.array(identities, dtype=np.int64), tuple(number_of), np.array(roles)
    )


def read_template_table(path: str | Path) -> TemplateTable:
    """Read a table with a header line: path, template and subject, one image a line.

    Three columns more are optional, and may be empty: ``media`` (a whole number that a video's
    frames share; otherwise each image is a medium of its own), ``score`` (the detector's) and
    ``role`` (gallery_1, gallery_2 or probe). ``template`` is a whole number, ``subject`` any name.
    An image may be in several templates, of one subject. Further columns are ignored.

    Raises:
        ValueError: a missing column, a malformed line (with file and line number); a template of
            two subjects or two roles, an image of two subjects or twice in a template (naming both
            lines); no images.
    """
    names: list[str] = []
    templates, subjects = array("q"), array("q")
    media: list[int | None] = []
    scores, roles = array("d"), []
    number_of: dict[str, int] = {}
    line_of: dict[tuple[str, int], int] = {}
    of_template = Agreement(path, "template", "subject")
    role_of_template = Agreement(path, "template", "role")
    of_image = Agreement(path, "image", "subject")
    rows = read_table(path, ("path", "template", "subject"), ("media", "score", "role"))
    for number, line, (name, template_text, subject, medium_text, score_text, role) in rows:
        template = whole_number(template_text)
        score = finite_number(score_text) if score_text else math.nan
        medium = whole_number(medium_text)
        if not is_relative_path(name) or template is None or not subject:
            expected = "a relative path, a whole number as template and a subject"
            raise malformed(path, number, line, expected)
        if (medium_text and medium is None) or score is None or role not in _TEMPLATE_ROLES:
            expected = "media as a whole number, score as a number, "
            expected += f"role as one of {', '.join(_TEMPLATE_ROLES[:-1])} or empty"
            raise malformed(path, number, line, expected)
        earlier = line_of.setdefault((name, template), number)
        if earlier != number:
            expected = f"each image once in a template, but it stands on line {earlier} too"
            raise malformed(path, number, line, expected)
        of_template.add(template, subject, number, line)
        role_of_template.add(template, role, number, line)
        of_image.add(name, subject, number, line)
        names.append(name)
        templates.append(template)
        media.append(medium)
        subjects.append(number_of.setdefault(subject, len(number_of)))
        scores.append(score)
        roles.append(role)
    if not names:
        raise ValueError(f"{path} holds no images below its header line; add some")
    # Images without a medium get numbers that no medium has.
    unused = 1 + max((medium for medium in media if medium is not None), default=-1)
    numbered = [unused + row if medium is None else medium for row, medium in enumerate(media)]
    return TemplateTable(
        tuple(names),
        np.array(templates),
        np.array(numbered, dtype=np.int64),
        np.array(subjects),
        tuple(number_of),
        np.array(scores),
        np.array(roles),
    )


def read_template_pair_table(path: str | Path) -> TemplatePairs:
    """Read a table of pairs with a header line: template_a, template_b and same.

    Templates are whole numbers; ``same`` is 1/0, true/false or yes/no. Further columns are ignored.

    Raises:
        ValueError: a missing column, a malformed line (with file and line number), a pair labelled
            both ways (naming both lines), no pairs.
    """
    first, second, same = array("q"), array("q"), array("b")
    for number, line, fields in read_table(path, ("template_a", "template_b", "same")):
        one, other = whole_number(fields[0]), whole_number(fields[1])
        truth = _TRUTH.get(fields[2].lower())
        if one is None or other is None or truth is None:
            expected = "whole numbers as template_a and template_b, and same as 1 or 0"
            raise malformed(path, number, line, expected)
        first.append(one)
        second.append(other)
        same.append(truth)
    pairs = TemplatePairs(np.array(first), np.array(second), np.array(same) == 1)
    check_template_pairs(path, pairs, lines_above=1)
    return pairs


def read_group_pairs(folder: str | Path) -> dict[str, Path]:
    """Find the pairs of each group of people, as RFW has them.

    Each ``Asian_pairs.txt`` in the folder or at most two levels below, as in
    ``txts/Asian/Asian_pairs.txt``, and each ``Asian.bin`` in the folder, is one group's, here
    ``Asian``.

    Returns:
        The groups' files, in natural order of their names.

    Raises:
        ValueError: no such folder, two files of one group (named), or fewer than two groups.
    """
    folder = Path(folder)
    found: dict[str, Path] = {}
    for place in folders_within(folder, levels=2):
        for name in entries(place):
            packed = place == folder and name.endswith(_PACKED_SUFFIX)
            group = PurePath(name).stem.removesuffix("_pairs")
            if not group or not (packed or name.endswith(_PAIRS_SUFFIX)):
                continue
            if found.setdefault(group, place / name) != place / name:
                raise ValueError(
                    f"{folder} holds two files of the group {group}: {found[group]} and "
                    f"{place / name}; remove one, or give the folder of one kind"
                )
    if len(found) < 2:
        raise ValueError(
            f"{folder} holds pairs of {len(found)} groups where two are the least; expected a file "
            f"such as Asian{_PAIRS_SUFFIX} or Asian{_PACKED_SUFFIX} of each"
        )
    return {group: found[group] for group in natural_sort(found)}
