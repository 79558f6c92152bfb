"""Options given as text, and results written as JSON: what several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def numbers(option: str, given: str) -> list[float]:
    """Numbers with commas between.

    >>> numbers("--far", "1e-4, 0.01")
    [0.0001, 0.01]
    """
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(f"{option} {given!r}; give numbers with commas between") from None


def whole_numbers(option: str, given: str) -> list[int]:
    """Whole numbers with commas between.

    >>> whole_numbers("--ranks", "1,5")
    [1, 5]
    """
    parts = given.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{option} {given!r}; give whole numbers with commas between")
    return [int(part) for part in parts]


def write_output(output: Path | None, content: Any) -> None:
    """Results as JSON, where a file for them is given."""
    from margrave.files import atomic_write

    if output is not None:
        with atomic_write(output) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
