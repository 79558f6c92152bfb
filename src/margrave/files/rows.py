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
    # A np.memmap, which has the attributes `filename` and `offset` (in bytes). A slice has the
    # `offset` of the array that was sliced, so use the slice's address instead. A mapping starts at
    # a multiple of the allocation granularity: np.memmap rounds `offset` down.
    mapped: Any = rows
    offset_in_mapping = rows.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    mapping_start = mapped.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    shape = (max(0, min(stop, len(rows)) - start), *rows.shape[1:])
    return np.fromfile(
        mapped.filename,
        rows.dtype,
        int(np.prod(shape)),
        offset=mapping_start + offset_in_mapping + start * rows.strides[0],
    ).reshape(shape)
