"""Helpers for error messages."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str], max_names: int = 8) -> str:
    """Join up to `max_names` names with commas, and add how many more there are.

    >>> listed("abc", max_names=2)
    'a, b and 1 more'
    """
    names = list(names)
    suffix = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + suffix


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's class name if the message is empty.

    >>> first_line(ValueError("too short\\nadvice"))
    'too short'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_sentence(error: Exception) -> str:
    """An error's class name and first sentence, without the unsafe advice that torch appends.

    >>> first_sentence(RuntimeError("damaged. Try weights_only=False"))
    'RuntimeError: damaged'
    """
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line.partition('. ')[0]}"
