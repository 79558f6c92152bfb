"""Open only regular files: reading a pipe may block forever, and a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open` that rejects pipes, devices and folders without blocking.

    Links are followed; their target must be a regular file.

    Raises:
        OSError: the path cannot be opened or is not a regular file.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_bytes(path: str | Path) -> bytes:
    """Read a regular file completely.

    Raises:
        OSError: see `open_regular`.
    """
    with open(path, "rb", opener=open_regular) as file:
        return file.read()
