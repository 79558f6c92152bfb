"""Read rows of arrays that may be memory-mapped files."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def read_rows(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Rows of an array; a memory-mapped array's rows are read from its file into new memory.

    Using the mapped pages instead would cause a fault on each, and count them as this process's
    memory.

    >>> read_rows(np.arange(6).reshape(3, 2), 1, 3).tolist()
    [[2, 3], [4, 5]]
    """
    memory = getattr(rows, "_mmap", None)
    if not isinstance(memory, mmap.mmap) or not rows.flags.c_contiguous:
        part = np.asarray(rows[start:stop])
        # torch.from_numpy needs writable memory.
        return part if part.flags.writeable else part.copy()
    mapped: Any = rows
    # A slice keeps its parent's offset, so compute its own from its address in the mapping.
    offset_in_mapping = rows.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    mapping_start = mapped.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    shape = (max(0, min(stop, len(rows)) - start), *rows.shape[1:])
    return np.fromfile(
        mapped.filename,
        rows.dtype,
        int(np.prod(shape)),
        offset=mapping_start + offset_in_mapping + start * rows.strides[0],
    ).reshape(shape)
