"""A file of vectors in slots of equal size, memory-mapped for searching."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

HEADER_BYTES = 4096
_MAGIC = b"margrave vectors\n"
_HEADER_FIELDS = struct.Struct("<17s16sII")
"""The header's fields: magic, the gallery's identity, format version, bytes per slot."""
VERSION = 1
"""Version of the file's format."""
MIN_GROWTH = 1 << 20
"""Minimum number of bytes by which the file grows."""


class VectorFile:
    """A file of slots of equal size, one vector per slot; an empty slot is filled with zeros.

    The file never shrinks, because another process may have it mapped.

    Writing is not atomic. The gallery writes a slot before its database refers to the slot, and
    zeroes a slot after the reference is gone. So every referenced slot is complete.

    Args:
        path: the file.
        identity: 16 random bytes that identify the gallery, as stored in its database.
        slot_bytes: bytes per slot.

    Raises:
        ValueError: the file is missing, is damaged, or belongs to another gallery.
    """

    def __init__(self, path: Path, identity: bytes, slot_bytes: int) -> None:
        self.path, self.slot_bytes = path, slot_bytes
        try:
            self._descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise ValueError(
                f"{path} cannot be opened ({error.strerror}); a gallery consists of a "
                "SQLite file and this vector file; put this file back beside the SQLite file"
            ) from error
        header = os.pread(self._descriptor, _HEADER_FIELDS.size, 0)
        expected = _HEADER_FIELDS.pack(_MAGIC, identity, VERSION, slot_bytes)
        if header != expected:
            os.close(self._descriptor)
            raise ValueError(
                f"{path} belongs to another gallery or is damaged; put back this gallery's "
                "own vector file"
            )

    @staticmethod
    def create(path: Path, identity: bytes, slot_bytes: int) -> None:
        """Create an empty file; an existing file is replaced once the new one is complete."""
        from margrave.files import atomic_write

        with atomic_write(path) as temporary:
            header = _HEADER_FIELDS.pack(_MAGIC, identity, VERSION, slot_bytes)
            temporary.write_bytes(header.ljust(HEADER_BYTES, b"\0"))

    @property
    def slot_count(self) -> int:
        """Number of slots in the file."""
        return max(0, os.fstat(self._descriptor).st_size - HEADER_BYTES) // self.slot_bytes

    def write(self, slot: int, content: bytes) -> None:
        """Write a slot; call `sync` to wait until it is on disk."""
        assert len(content) == self.slot_bytes
        if slot >= self.slot_count:
            # Grow by at least an eighth, so that large files are rarely resized.
            extra_slots = max(MIN_GROWTH // self.slot_bytes, self.slot_count // 8, 1)
            os.ftruncate(self._descriptor, HEADER_BYTES + (slot + extra_slots) * self.slot_bytes)
        os.pwrite(self._descriptor, content, HEADER_BYTES + slot * self.slot_bytes)

    def read(self, slot: int) -> bytes:
        """Read a slot; a slot beyond the end of the file is all zeros."""
        content = os.pread(self._descriptor, self.slot_bytes, HEADER_BYTES + slot * self.slot_bytes)
        return content.ljust(self.slot_bytes, b"\0")

    def zero(self, slot: int) -> None:
        """Overwrite a slot with zeros."""
        if slot < self.slot_count:
            os.pwrite(
                self._descriptor, bytes(self.slot_bytes), HEADER_BYTES + slot * self.slot_bytes
            )

    def sync(self) -> None:
        """Wait until everything written is on disk."""
        os.fdatasync(self._descriptor) if hasattr(os, "fdatasync") else os.fsync(self._descriptor)

    def map_vectors(self, dtype: np.dtype, dimension: int) -> np.ndarray:
        """Map the vectors of an unencrypted gallery into memory; return them as (slots, D)."""
        # torch requires writable memory. In mode "c" (copy-on-write), writes do not reach the file.
        return np.memmap(self.path, dtype, "c", HEADER_BYTES, (self.slot_count, dimension))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
