"""Memory that is asked for again and again, kept instead of given back."""

from __future__ import annotations

from functools import cache

import torch


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 31 MB for the next ones of a step.

    By default glibc hands blocks of a megabyte back to the system and asks for zeroed pages anew,
    which costs more than the arithmetic on them. It takes the size of the largest block ever freed
    for the limit, up to 32 MB; an untouched one costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
