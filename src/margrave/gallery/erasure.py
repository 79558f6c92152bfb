"""Searches files for bytes that should have been erased."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TRACE_BYTES = 32
"""Length in bytes of the excerpts by which erased content is searched for."""
_READ_BYTES = 1 << 24
"""Files are read in blocks of 16 MiB."""


def traces_of(content: bytes) -> list[bytes]:
    """Byte strings that reveal where some content is stored.

    Content of less than 256 bytes is returned in full; longer content yields up to three excerpts.
    Byte strings of zeros are left out, because they occur everywhere.

    >>> traces_of(b"abc")
    [b'abc']
    """
    if len(content) < 8 * TRACE_BYTES:
        return [content] if any(content) else []
    # Many images of one format have the same beginning and end, so take no excerpts from there.
    offsets = [len(content) * quarter // 4 for quarter in (1, 2, 3)]
    excerpts = {content[offset : offset + TRACE_BYTES] for offset in offsets}
    return sorted(excerpt for excerpt in excerpts if any(excerpt))


def first_file_with(paths: Sequence[Path], traces: Sequence[bytes]) -> str | None:
    """The name of the first file that contains any of the byte strings, or None."""
    # A trace may begin in one block and end in the next, so consecutive blocks overlap.
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
    """Count the free pages of a SQLite file that still contain data.

    The freelist is a chain of trunk pages, which list leaf pages. A trunk page begins with the page
    number of the next trunk, the number of leaves in the list, and the leaves' page numbers; each
    number has 4 bytes. A leaf is dirty if it contains anything but zeros. The unused end of a trunk
    page may contain page numbers of former leaves, which reveal nothing. So a trunk page is dirty
    only if its unused end contains a number that is larger than the file's page count.
    Source: SQLite's documentation, Database File Format, sections 1.3 (header) and 1.5 (freelist).
    """
    with open(path, "rb") as file:
        header = file.read(100)
        page_size = int.from_bytes(header[16:18], "big")
        # The header encodes a page size of 65536 as 1.
        page_size = 65536 if page_size == 1 else page_size
        page_count = int.from_bytes(header[28:32], "big")
        # Bytes 32 to 35 are the number of the first trunk page. Pages are numbered from 1; 0 ends
        # the chain. In a damaged file, the chain may be a loop.
        trunk, dirty_count, visited = int.from_bytes(header[32:36], "big"), 0, set[int]()
        while trunk and trunk not in visited:
            visited.add(trunk)
            file.seek((trunk - 1) * page_size)
            page = file.read(page_size)
            # A trunk page has room for two numbers and this many leaves at most.
            leaf_count = min(int.from_bytes(page[4:8], "big"), page_size // 4 - 2)
            unused_end = page[8 + 4 * leaf_count :]
            numbers = (
                int.from_bytes(unused_end[offset : offset + 4], "big")
                for offset in range(0, len(unused_end), 4)
            )
            dirty_count += any(number > page_count for number in numbers)
            for leaf in range(leaf_count):
                page_number = int.from_bytes(page[8 + 4 * leaf : 12 + 4 * leaf], "big")
                file.seek(max(0, page_number - 1) * page_size)
                dirty_count += any(file.read(page_size))
            trunk = int.from_bytes(page[:4], "big")
    return dirty_count
