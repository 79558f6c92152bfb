"""Read arrays of numbers, text, and cells of these from MATLAB files of version 5.

SciPy's reader supports more, but a damaged file can crash the process.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from margrave.files.regular import read_bytes
from margrave.files.text import unreadable

Value = str | int | float | None

_HEADER_BYTES = 128
_VERSION = 0x0100
# Types of elements: an array, and a compressed element.
_MATRIX, _COMPRESSED = 14, 15
# Classes of arrays, and a flag.
_CELLS, _TEXT, _NUMBERS = 1, 4, range(6, 16)
_COMPLEX = 0x800
_MAX_BYTES = 2**27
"""Maximum decompressed size; image lists are smaller."""
_MAX_ENTRIES = 2_000_000
"""Maximum number of entries of an array; Python needs about 60 bytes for each."""

_NUMBER_TYPES = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "bBhHiIfdqQ", strict=True))
_TEXT_ENCODINGS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


class _Broken(Exception):
    """The file is damaged, or contains an unsupported data type."""


def read_matlab_lists(path: Path, names: Collection[str]) -> dict[str, list[Value]]:
    """Read variables by name, each as a list of its entries in column-major order.

    An entry of a cell array is the text or number in the cell, or None for an empty cell; an entry
    of a text array is one of its rows.

    Raises:
        ValueError: the file is damaged or not of version 5 (written by ``save -v7``), or a variable
            is missing or of an unsupported type.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        lists = dict(_variables(content, names))
    except (_Broken, struct.error, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a MATLAB file ({error}); download it again"
        ) from None
    if missing := [name for name in names if name not in lists]:
        raise ValueError(f"{path} contains no {' and no '.join(missing)}; download it again")
    return lists


def _variables(content: bytes, names: Collection[str]) -> Iterator[tuple[str, list[Value]]]:
    """Yield the name and the entries of each of the named variables."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if order is None or struct.unpack_from(f"{order}H", content, 124) != (_VERSION,):
        raise _Broken("it does not have version 5, which MATLAB's save -v7 writes")
    remaining = _MAX_BYTES
    for kind, data in _elements(content[_HEADER_BYTES:], order):
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(data, _MAX_BYTES)
            remaining -= len(unpacked)
            if remaining < 0:
                raise _Broken(f"its variables decompress to more than {_MAX_BYTES} bytes")
            kind, data = next(_elements(unpacked, order), (0, b""))
        if kind != _MATRIX:
            raise _Broken(f"an element has type {kind} instead of a variable")
        # An array begins with three elements: flags, shape and name.
        name_parts = [part for _, part in islice(_elements(data, order), 3)][-1:]
        name = b"".join(name_parts).decode("ascii", "replace")
        if name in names:
            yield name, _entries(data, order)


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the bytes of each element."""
    position = 0
    while position < len(content):
        kind, size = struct.unpack_from(f"{order}II", content, position)
        begin = position + 8
        if kind >> 16:
            # A small element: type and size share one word, and up to 4 bytes of data follow.
            kind, size, begin = kind & 0xFFFF, kind >> 16, position + 4
            position += 8
        else:
            # All but compressed elements are padded to a multiple of 8 bytes.
            position = begin + size + (0 if kind == _COMPRESSED else -size % 8)
        if begin + size > len(content):
            raise _Broken("it is truncated")
        yield kind, content[begin : begin + size]


def _entries(content: bytes, order: str, nested: bool = False) -> list[Value]:
    """The entries of an array in column-major order."""
    elements = _elements(content, order)
    (_, flags), (_, shape), _ = (next(elements, (0, b"")) for _ in range(3))
    (flag_bits,) = struct.unpack_from(f"{order}I", flags)
    rows, columns = struct.unpack(f"{order}ii", shape)
    if rows < 0 or columns < 0 or max(rows, 1) * max(columns, 1) > _MAX_ENTRIES:
        raise _Broken(f"an array has the invalid shape {rows} x {columns}")
    kind = flag_bits & 0xFF
    if kind == _TEXT:
        return [*_rows_of_text(*next(elements, (2, b"")), rows, order)]
    entries: list[Value]
    if kind == _CELLS and not nested:
        entries = [_cell_value(*element, order) for element in islice(elements, _MAX_ENTRIES)]
    elif kind in _NUMBERS and not flag_bits & _COMPLEX:
        storage, data = next(elements, (2, b""))
        if storage not in _NUMBER_TYPES:
            raise _Broken(f"its numbers have the unsupported type {storage}")
        if len(data) > rows * columns * 8:
            raise _Broken(f"an array of {rows} x {columns} has {len(data)} bytes")
        entries = [number for (number,) in struct.iter_unpack(order + _NUMBER_TYPES[storage], data)]
    else:
        raise _Broken(f"an array has class {kind}; supported are numbers, text and cells of these")
    if len(entries) != rows * columns:
        raise _Broken(f"an array of {rows} x {columns} has {len(entries)} entries")
    return entries


def _cell_value(kind: int, content: bytes, order: str) -> Value:
    """The text or number in a cell, or None."""
    if kind != _MATRIX:
        raise _Broken(f"an element has type {kind} instead of a cell")
    entries = _entries(content, order, nested=True) if content else []
    if len(entries) > 1:
        raise _Broken("a cell contains more than one text or number")
    return entries[0] if entries else None


def _rows_of_text(storage: int, data: bytes, rows: int, order: str) -> Iterator[str]:
    if storage not in _TEXT_ENCODINGS:
        raise _Broken(f"its text has the unsupported type {storage}")
    encoding = _TEXT_ENCODINGS[storage]
    if encoding != "utf-8":
        encoding += "-le" if order == "<" else "-be"
    text = data.decode(encoding)
    if text and (rows < 1 or len(text) % rows):
        raise _Broken(f"a text array of {rows} rows has {len(text)} characters")
    # Characters are stored in column-major order.
    yield from (text[row::rows] for row in range(rows if text else 0))
