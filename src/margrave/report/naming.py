"""Distinct names for the runs and results on one page."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from margrave.evaluation import Result


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names; repeated ones get a number.

    >>> distinct_names(["run", "other", "run"])
    ['run', 'other', 'run (2)']
    """
    distinct: dict[str, None] = {}
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        candidates = itertools.chain([name], numbered)
        distinct[next(candidate for candidate in candidates if candidate not in distinct)] = None
    return list(distinct)


def result_names(results: Sequence[Result]) -> list[str]:
    """A distinct name for each result: its own, or its model's if results share a name."""
    names = [result.name or result.protocol for result in results]
    return distinct_names(
        [
            result.origin.model if names.count(name) > 1 and result.origin.model else name
            for name, result in zip(names, results, strict=True)
        ]
    )
