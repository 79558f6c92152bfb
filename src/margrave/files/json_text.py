"""Parse JSON from untrusted files; any invalid content raises a ValueError."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 100
"""Maximum nesting of lists and mappings; Margrave's own files need only a few levels."""


def read_json(content: str | bytes, name: str) -> Any:
    """Parse JSON.

    Args:
        content: the file's content.
        name: the file's name, for messages.

    Raises:
        ValueError: the JSON or its encoding is invalid, a number has thousands of digits, or lists
            and mappings are nested too deeply.

    >>> read_json('{"count": 3}', "features.json")
    {'count': 3}
    """
    try:
        value = json.loads(content, parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    containers, depth = [value], 0
    while containers:
        depth += 1
        # The outermost list or mapping is not nested, so it does not count.
        if depth > MAX_DEPTH + 1:
            raise ValueError(f"{name} is nested more than {MAX_DEPTH} levels deep")
        containers = [child for part in containers for child in _children(part)]
    return value


def _reject_constant(name: str) -> Any:
    """Reject NaN, Infinity and -Infinity, which Python's parser accepts but JSON does not have."""
    raise ValueError(f"{name} is not a JSON number")


def _children(value: Any) -> list[Any]:
    """The lists and mappings directly inside a list or mapping; empty for any other value."""
    parts = value.values() if isinstance(value, dict) else value
    is_container = isinstance(value, dict | list)
    return [part for part in parts if isinstance(part, dict | list)] if is_container else []
