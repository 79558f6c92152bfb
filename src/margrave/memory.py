"""Memory kept where it is asked for again and again, and given back where it only passes by."""

from __future__ import annotations

import mmap
from functools import cache

import numpy as np
import torch


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 31 MB for the next ones of a step.

    By default glibc hands blocks of a megabyte back to the system and asks for zeroed pages anew,
    which costs more than the arithmetic on them. It takes the size of the largest block ever freed
    for the limit, up to 32 MB; an untouched one costs nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def release_pages(mapped: np.ndarray, start: int, stop: int) -> None:
    """Let the system take back the pages of a memory-mapped file's rows.

    They would count as this process's until memory is short. Other arrays stay as they are.
    """
    memory = getattr(mapped, "_mmap", None)
    if not isinstance(memory, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    width = mapped.strides[0]
    begin = start * width // mmap.PAGESIZE * mmap.PAGESIZE
    length = min(len(memory), stop * width + mmap.PAGESIZE) - begin
    if length > 0:
        memory.madvise(mmap.MADV_DONTNEED, begin, length)
