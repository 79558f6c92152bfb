"""JSON of files, read without a traceback whatever it holds."""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 100
"""Lists and mappings within each other: far more than any of our files has."""


def read_json(content: str | bytes, name: str) -> Any:
    """The value that a JSON text holds.

    Args:
        content: of the file.
        name: what messages call it.

    Raises:
        ValueError: not JSON or not text, numbers of thousands of digits, nested too deeply.

    >>> read_json('{"count": 3}', "features.json")
    {'count': 3}
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"{name} is nested more than {DEEPEST} deep") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST + 1:
            raise ValueError(f"{name} is nested more than {DEEPEST} deep")
        level = [child for part in level for child in _children(part)]
    return value


def _children(value: Any) -> list[Any]:
    """What a list or mapping holds that may hold something itself."""
    parts = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, dict | list)
    return [part for part in parts if isinstance(part, dict | list)] if nested else []
