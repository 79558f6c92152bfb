"""Read rows of arrays that may be memory-mapped files."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def read_rows(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The rows from `start` (inclusive) to `stop` (exclusive).

    Rows of a memory-mapped array are read from its file. Accessing the mapping instead would cause
    a page fault on each page, and all pages would count as this process's memory.

    >>> read_rows(np.arange(6).reshape(3, 2), 1, 3).tolist()
    [[2, 3], [4, 5]]
    """
    mapping = getattr(rows, "_mmap", None)
    if not isinstance(mapping, mmap.mmap) or not rows.flags.c_contiguous:
        part = np.asarray(rows[start:stop])
        # torch.from_numpy needs writable memory.
        return part if part.flags.writeable else part.copy()
    # `rows` is a np.memmap, or a slice of one, which keeps the `offset` of the whole array. So the
    # position in the file is computed from addresses: the position at which the mapping starts,
    # plus the distance of `rows` from the mapping's start. The mapping starts at `offset`, rounded
    # down to the allocation granularity.
    memmap: Any = rows
    offset_in_mapping = rows.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    granularity = mmap.ALLOCATIONGRANULARITY
    position_of_mapping = memmap.offset // granularity * granularity
    shape = (max(0, min(stop, len(rows)) - start), *rows.shape[1:])
    return np.fromfile(
        memmap.filename,
        rows.dtype,
        int(np.prod(shape)),
        offset=position_of_mapping + offset_in_mapping + start * rows.strides[0],
    ).reshape(shape)
