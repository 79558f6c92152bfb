"""Lists in MATLAB's files of version 5: numbers, text, and cells of either.

scipy reads all of MATLAB, but a damaged file can end its process.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from margrave.files.ordinary import read_bytes
from margrave.files.text import unreadable

Value = str | int | float | None

_HEADER_BYTES = 128
_VERSION = 0x0100
_MATRIX, _COMPRESSED = 14, 15
_CELLS, _TEXT, _NUMBERS = 1, 4, range(6, 16)
_COMPLEX = 0x800
_MOST_BYTES = 2**27
"""No lists of images unpack to more."""
_MOST_ENTRIES = 2_000_000
"""Of an array; Python needs some sixty bytes for each."""

_NUMBER_TYPES = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "bBhHiIfdqQ", strict=True))
_TEXT_ENCODINGS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


class _Broken(Exception):
    """The bytes are not what they declare, or not of a kind that is read."""


def read_matlab_lists(path: Path, names: Collection[str]) -> dict[str, list[Value]]:
    """The variables of these names, each as a list of its entries, column by column.

    A cell's entry is the text or number in it, None where it is empty; an entry of a text is one of
    its rows. Variables of other names are passed over.

    Raises:
        ValueError: no file of MATLAB's version 5 (which ``save -v7`` writes), a broken one, one
            that lacks a variable, or a variable of another kind.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        lists = dict(_variables(content, names))
    except (_Broken, struct.error, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a MATLAB file ({error}); fetch it again"
        ) from None
    if missing := [name for name in names if name not in lists]:
        raise ValueError(f"{path} holds no {' and no '.join(missing)}; fetch it again")
    return lists


def _variables(content: bytes, names: Collection[str]) -> Iterator[tuple[str, list[Value]]]:
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if order is None or struct.unpack_from(f"{order}H", content, 124) != (_VERSION,):
        raise _Broken("it is not of version 5, which MATLAB's save -v7 writes")
    left = _MOST_BYTES
    for kind, data in _elements(content[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(data, _MOST_BYTES)
            left -= len(unpacked)
            if left < 0:
                raise _Broken(f"its variables unpack to more than {_MOST_BYTES} bytes")
            kind, data = next(_elements(unpacked, order), (0, b""))
        if kind != _MATRIX:
            raise _Broken(f"an element of type {kind} stands where a variable should")
        name = [part for _, part in islice(_elements(data, order), 3)][-1:]
        spelt = b"".join(name).decode("ascii", "replace")
        if spelt in names:
            yield spelt, _entries(data, order)


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the bytes of each element."""
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        begin = position + 8
        if kind >> 16:
            # Up to four bytes stand in the place of their size.
            kind, size, begin = kind & 0xFFFF, kind >> 16, position + 4
            position += 8
        else:
            position = begin + size + (0 if kind == _COMPRESSED else -size % 8)
        if begin + size > len(content):
            raise _Broken("it is truncated")
        yield kind, content[begin : begin + size]


def _entries(content: bytes, order: str, nested: bool = False) -> list[Value]:
    """What stands in an array, column by column."""
    elements = _elements(content, order)
    (_, flags), (_, shape), _ = (next(elements, (0, b"")) for _ in range(3))
    (described,) = struct.unpack_from(f"{order}I", flags)
    rows, columns = struct.unpack(f"{order}ii", shape)
    if rows < 0 or columns < 0 or max(rows, 1) * max(columns, 1) > _MOST_ENTRIES:
        raise _Broken(f"it holds an array of {rows} x {columns}")
    kind = described & 0xFF
    if kind == _TEXT:
        return [*_rows_of_text(*next(elements, (2, b"")), rows, order)]
    entries: list[Value]
    if kind == _CELLS and not nested:
        entries = [_only_entry(*element, order) for element in islice(elements, _MOST_ENTRIES)]
    elif kind in _NUMBERS and not described & _COMPLEX:
        storage, data = next(elements, (2, b""))
        if storage not in _NUMBER_TYPES:
            raise _Broken(f"its numbers are of type {storage}")
        if len(data) > rows * columns * 8:
            raise _Broken(f"{len(data)} bytes stand in an array of {rows} x {columns}")
        entries = [number for (number,) in struct.iter_unpack(order + _NUMBER_TYPES[storage], data)]
    else:
        raise _Broken(f"it holds an array of class {kind}, not numbers, text or cells of these")
    if len(entries) != rows * columns:
        raise _Broken(f"{len(entries)} entries stand in an array of {rows} x {columns}")
    return entries


def _only_entry(kind: int, content: bytes, order: str) -> Value:
    """What a cell holds."""
    if kind != _MATRIX:
        raise _Broken(f"an element of type {kind} stands where a cell should")
    entries = _entries(content, order, nested=True) if content else []
    if len(entries) > 1:
        raise _Broken("a cell holds more than a text or a number")
    return entries[0] if entries else None


def _rows_of_text(storage: int, data: bytes, rows: int, order: str) -> Iterator[str]:
    if storage not in _TEXT_ENCODINGS:
        raise _Broken(f"its text is of type {storage}")
    encoding = _TEXT_ENCODINGS[storage]
    if encoding != "utf-8":
        encoding += "-le" if order == "<" else "-be"
    text = data.decode(encoding)
    if text and (rows < 1 or len(text) % rows):
        raise _Broken(f"{len(text)} characters stand in a text of {rows} rows")
    # Characters stand column by column.
    yield from (text[row::rows] for row in range(rows if text else 0))
