"""Clean text from files, so that a page can show it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from margrave.evaluation import Figure, Result

MAX_NAME = 200
"""Longest name on a page, in characters."""
MAX_NOTE = 2000
"""Longest note, or text of a protocol's rules, on a page, in characters."""
# Control characters, characters that change the text direction, and lone surrogates.
UNSHOWABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def clean_text(text: str, limit: int = MAX_NAME) -> str:
    """The text, cut to `limit` characters, with U+FFFD for characters that a page cannot show.

    >>> clean_text("a\\x00b"), clean_text("abcdef", limit=4)
    ('a\ufffdb', 'abc…')
    """
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return UNSHOWABLE.sub("\ufffd", text)


def clean_result(result: Result) -> Result:
    """A copy of a result with clean texts.

    Other values, such as the settings and the scores, are copied unchanged.
    """
    return replace(
        result,
        protocol=clean_text(result.protocol),
        name=clean_text(result.name),
        rules=clean_text(result.rules, MAX_NOTE),
        figures=tuple(_clean_figure(figure) for figure in result.figures),
        counts=_clean_keys(result.counts),
        curves={clean_text(name): _clean_keys(columns) for name, columns in result.curves.items()},
        origin=replace(
            result.origin,
            model=clean_text(result.origin.model),
            weights=clean_text(result.origin.weights),
            images=clean_text(result.origin.images),
        ),
        notes=tuple(clean_text(note, MAX_NOTE) for note in result.notes),
        version=clean_text(result.version),
    )


def _clean_figure(figure: Figure) -> Figure:
    return replace(
        figure,
        metric=clean_text(figure.metric),
        stratum=clean_text(figure.stratum),
        at={
            clean_text(name): clean_text(value) if isinstance(value, str) else value
            for name, value in figure.at.items()
        },
    )


def _clean_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    return {clean_text(name): value for name, value in values.items()}
