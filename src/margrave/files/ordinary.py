"""Files, and nothing that only bears a name like one: pipes wait for ever, devices never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def ordinary(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open` that refuses what is no ordinary file, without waiting for it.

    Links are followed; what they lead to must be an ordinary file.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder.
    """
    file = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return file


def read_bytes(path: str | Path) -> bytes:
    """All of a file.

    Raises:
        OSError: as `ordinary`.
    """
    with open(path, "rb", opener=ordinary) as file:
        return file.read()
