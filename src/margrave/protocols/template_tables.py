"""CSV tables of templates, for test sets without an official file format."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from margrave.files.text import (
    ConsistencyCheck,
    is_relative_path,
    malformed,
    parse_finite_number,
    parse_whole_number,
    read_table,
)
from margrave.protocols.pooled_templates import TemplatePairs, check_template_pairs

# An empty role leaves the template out of the 1:N evaluation.
_TEMPLATE_ROLES = ("gallery_1", "gallery_2", "probe", "")
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True, eq=False)
class TemplateTable:
    """The N lines of a table, each for one image in one template.

    Attributes:
        names: the images' paths.
        templates: (N,) int64 template number of each image.
        template_numbers: template name in the table -> template number.
        media: (N,) int64 medium of each image.
        subjects: (N,) int64 subject of each image, numbered in order of appearance.
        subject_names: the subjects' names, indexed by subject number.
        scores: (N,) float64 detector score of each image; NaN where the table has none.
        roles: (N,) str: ``gallery_1``, ``gallery_2``, ``probe``, or empty.
    """

    names: tuple[str, ...]
    templates: np.ndarray
    template_numbers: Mapping[str, int]
    media: np.ndarray
    subjects: np.ndarray
    subject_names: tuple[str, ...]
    scores: np.ndarray
    roles: np.ndarray


def read_template_table(path: str | Path) -> TemplateTable:
    """Read a CSV table with the columns path, template and subject, one image per line.

    Three more columns are optional and may be empty: ``media`` (name or number of the medium: all
    frames of a video have the same, and an image without one is its own medium), ``score`` (the
    detector's score) and ``role`` (gallery_1, gallery_2 or probe). Templates and subjects may be
    numbers or names. An image may be in several templates of one subject. Other columns are
    ignored.

    Raises:
        ValueError: a column is missing, a line is malformed, a template has two subjects or two
            roles, an image has two subjects or is twice in a template, or there are no images; the
            message names the file and lines.
    """
    names: list[str] = []
    templates: list[str] = []
    subjects = array("q")
    media: list[str] = []
    scores, roles = array("d"), []
    subject_numbers: dict[str, int] = {}
    line_of: dict[tuple[str, str], int] = {}
    template_subject = ConsistencyCheck(path, "template", "subject")
    template_role = ConsistencyCheck(path, "template", "role")
    image_subject = ConsistencyCheck(path, "image", "subject")
    rows = read_table(path, ("path", "template", "subject"), ("media", "score", "role"))
    for line_number, line, (name, template_text, subject, medium_text, score_text, role) in rows:
        template, medium = _normalized(template_text), _normalized(medium_text)
        score = parse_finite_number(score_text) if score_text else math.nan
        if not is_relative_path(name) or not template or not subject:
            expected = "a relative path, a template and a subject"
            raise malformed(path, line_number, line, expected)
        if score is None or role not in _TEMPLATE_ROLES:
            expected = "score as a number, "
            expected += f"role as one of {', '.join(_TEMPLATE_ROLES[:-1])} or empty"
            raise malformed(path, line_number, line, expected)
        earlier_line_number = line_of.setdefault((name, template), line_number)
        if earlier_line_number != line_number:
            expected = (
                f"each image once in a template, but it is also on line {earlier_line_number}"
            )
            raise malformed(path, line_number, line, expected)
        template_subject.add(template, subject, line_number, line)
        template_role.add(template, role, line_number, line)
        image_subject.add(name, subject, line_number, line)
        names.append(name)
        templates.append(template)
        media.append(medium)
        subjects.append(subject_numbers.setdefault(subject, len(subject_numbers)))
        scores.append(score)
        roles.append(role)
    if not names:
        raise ValueError(f"{path} holds no images below its header line; add some")
    number_of_template = _number_names(templates)
    number_of_medium = _number_names([medium for medium in media if medium])
    # Each image without a medium gets a medium number that no other image has.
    first_unused = 1 + max(number_of_medium.values(), default=-1)
    media_numbers = [
        number_of_medium[medium] if medium else first_unused + row
        for row, medium in enumerate(media)
    ]
    return TemplateTable(
        tuple(names),
        np.array([number_of_template[template] for template in templates]),
        number_of_template,
        np.array(media_numbers, dtype=np.int64),
        np.array(subjects),
        tuple(subject_numbers),
        np.array(scores),
        np.array(roles),
    )


def _normalized(text: str) -> str:
    """Remove a number's leading zeros, so that 007 and 7 are equal; other names are unchanged."""
    number = parse_whole_number(text)
    return text if number is None else str(number)


def _number_names(names: Sequence[str]) -> dict[str, int]:
    """Name -> number: the name itself if all names are whole numbers, else 0, 1, … in order."""
    numbers = {name: parse_whole_number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return {name: number for name, number in numbers.items() if number is not None}
    return {name: index for index, name in enumerate(numbers)}


def read_template_pair_table(
    path: str | Path, template_numbers: Mapping[str, int] | None = None
) -> TemplatePairs:
    """Read a CSV table of pairs with the columns template_a, template_b and same.

    ``same`` is 1/0, true/false or yes/no. Other columns are ignored.

    Args:
        path: the table's path.
        template_numbers: template name -> template number, from ``read_template_table``; if None,
            the table must contain template numbers.

    Raises:
        ValueError: a column is missing, a line is malformed, a template is not in
            ``template_numbers``, a pair has both labels, or there are no pairs; the message names
            the file and lines.
    """
    first, second, same = array("q"), array("q"), array("b")

    def number_of(text: str) -> int | None:
        return (
            parse_whole_number(text)
            if template_numbers is None
            else template_numbers.get(_normalized(text))
        )

    for line_number, line, fields in read_table(path, ("template_a", "template_b", "same")):
        template_a, template_b = number_of(fields[0]), number_of(fields[1])
        is_same = _BOOLEANS.get(fields[2].lower())
        if template_a is None or template_b is None or is_same is None:
            identifiers = (
                "whole numbers" if template_numbers is None else "names from the table of templates"
            )
            expected = f"{identifiers} as template_a and template_b, and same as 1 or 0"
            raise malformed(path, line_number, line, expected)
        first.append(template_a)
        second.append(template_b)
        same.append(is_same)
    pairs = TemplatePairs(np.array(first), np.array(second), np.array(same) == 1)
    check_template_pairs(path, pairs, lines_above=1)
    return pairs
