"""Searches files for bytes that should have been erased."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TRACE_BYTES = 32
"""Length of the excerpts of erased content that are searched for."""
_READ_BYTES = 1 << 24


def traces_of(content: bytes) -> list[bytes]:
    """Byte strings that identify content: all of it, or three excerpts if it is long.

    >>> traces_of(b"abc")
    [b'abc']
    """
    if len(content) < 8 * TRACE_BYTES:
        return [content] if any(content) else []
    # No excerpts from the beginning or the end, which many images of one format have in common.
    offsets = [len(content) * quarter // 4 for quarter in (1, 2, 3)]
    excerpts = {content[offset : offset + TRACE_BYTES] for offset in offsets}
    # Excerpts of zeros occur everywhere and identify nothing.
    return sorted(excerpt for excerpt in excerpts if any(excerpt))


def first_file_with(paths: Sequence[Path], traces: Sequence[bytes]) -> str | None:
    """The name of the first file that contains any of the byte strings, or None."""
    overlap = max((len(trace) for trace in traces), default=1) - 1
    for path in paths:
        tail = b""
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                block = tail + block
                if any(trace in block for trace in traces):
                    return path.name
                tail = block[-overlap:] if overlap else b""
    return None


def dirty_free_pages(path: Path) -> int:
    """Count the pages on a SQLite file's freelist that contain anything but zeros.

    The freelist is a chain of trunk pages, which list leaf pages. A trunk begins with the page
    number of the next trunk, the count of its leaves, and their page numbers. The remainder of a
    trunk may hold page numbers of former leaves. So a trunk counts only if its remainder holds a
    number that is larger than the file's page count.
    Source: SQLite's documentation, Database File Format, section 1.5.
    """
    with open(path, "rb") as file:
        header = file.read(100)
        page_size = int.from_bytes(header[16:18], "big")
        page_size = 65536 if page_size == 1 else page_size
        page_count = int.from_bytes(header[28:32], "big")
        trunk, dirty, visited = int.from_bytes(header[32:36], "big"), 0, set[int]()
        while trunk and trunk not in visited:
            visited.add(trunk)
            file.seek((trunk - 1) * page_size)
            page = file.read(page_size)
            leaf_count = min(int.from_bytes(page[4:8], "big"), page_size // 4 - 2)
            remainder = page[8 + 4 * leaf_count :]
            numbers = (
                int.from_bytes(remainder[offset : offset + 4], "big")
                for offset in range(0, len(remainder), 4)
            )
            dirty += any(number > page_count for number in numbers)
            for leaf in range(leaf_count):
                page_number = int.from_bytes(page[8 + 4 * leaf : 12 + 4 * leaf], "big")
                file.seek(max(0, page_number - 1) * page_size)
                dirty += any(file.read(page_size))
            trunk = int.from_bytes(page[:4], "big")
    return dirty
