"""Atomic file writes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to; on exit, that file atomically replaces `path`.

    The temporary file is in the same folder (created if necessary) and is flushed to disk before it
    is renamed. If the block raises, the temporary file is deleted and `path` stays unchanged.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/notes.txt") as temporary:
    ...         _ = temporary.write_text("all of it")
    ...     Path(folder, "notes.txt").read_text()
    'all of it'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    # Also flush the folder, so that the new name survives a crash. Windows cannot flush folders.
    if os.name == "posix":
        _flush_to_disk(target.parent)


def _flush_to_disk(path: Path) -> None:
    # Windows flushes only files opened for writing; POSIX opens folders only for reading.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
