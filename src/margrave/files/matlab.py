"""Read numeric arrays, text arrays, and cell arrays of these from MATLAB version 5 files.

SciPy's reader supports more types, but a damaged file can crash its process.
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
"""An entry of an array; None is an empty cell."""

_HEADER_BYTES = 128
_VERSION = 0x0100
# Types of elements: an array, and a compressed element that contains one.
_MATRIX, _COMPRESSED = 14, 15
# Array classes, and the flag of complex numbers.
_CELLS, _TEXT, _NUMBERS = 1, 4, range(6, 16)
_COMPLEX = 0x800
_NO_DATA = 2, b""
"""Stands for a missing data element; type 2 is valid for both numbers and text."""
_MAX_BYTES = 2**27
"""Maximum decompressed size; image lists are smaller."""
_MAX_ENTRIES = 2_000_000
"""Maximum number of entries of an array; Python needs about 60 bytes for each."""

# Element type of numbers -> their format for `struct`.
_NUMBER_TYPES = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "bBhHiIfdqQ", strict=True))
# Element type of text -> its encoding.
_TEXT_ENCODINGS = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}


class _MatlabError(Exception):
    """The file is damaged, or contains an unsupported data type."""


def read_matlab_lists(path: Path, names: Collection[str]) -> dict[str, list[Value]]:
    """Read variables by name, each as a list of its entries in column-major order.

    The entry of a cell is its text or number, or None if the cell is empty. The entries of a text
    array are its rows.

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
    except (_MatlabError, struct.error, zlib.error, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a MATLAB file ({error}); download it again"
        ) from None
    if missing := [name for name in names if name not in lists]:
        raise ValueError(f"{path} contains no {' and no '.join(missing)}; download it again")
    return lists


def _variables(content: bytes, names: Collection[str]) -> Iterator[tuple[str, list[Value]]]:
    """Yield the name and the entries of each variable in `names`."""
    # The header ends with the version and two characters that give the byte order.
    byte_order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEADER_BYTES])
    if byte_order is None or struct.unpack_from(f"{byte_order}H", content, 124) != (_VERSION,):
        raise _MatlabError("it does not have version 5, which MATLAB's save -v7 writes")
    remaining = _MAX_BYTES
    for element_type, data in _elements(content[_HEADER_BYTES:], byte_order):
        if element_type == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(data, _MAX_BYTES)
            remaining -= len(unpacked)
            if remaining < 0:
                raise _MatlabError(f"its variables decompress to more than {_MAX_BYTES} bytes")
            element_type, data = next(_elements(unpacked, byte_order), (0, b""))
        if element_type != _MATRIX:
            raise _MatlabError(f"an element of type {element_type} is not a variable")
        # An array begins with three elements: flags, shape and name.
        name_parts = [part for _, part in islice(_elements(data, byte_order), 3)][-1:]
        name = b"".join(name_parts).decode("ascii", "replace")
        if name in names:
            yield name, _entries(data, byte_order)


def _elements(content: bytes, byte_order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the data of each element."""
    position = 0
    while position < len(content):
        element_type, size = struct.unpack_from(f"{byte_order}II", content, position)
        begin = position + 8
        if element_type >> 16:
            # A small element: type and size share one word, and up to 4 bytes of data follow.
            element_type, size, begin = element_type & 0xFFFF, element_type >> 16, position + 4
            position += 8
        else:
            # All but compressed elements are padded to a multiple of 8 bytes.
            position = begin + size + (0 if element_type == _COMPRESSED else -size % 8)
        if begin + size > len(content):
            raise _MatlabError("it is truncated")
        yield element_type, content[begin : begin + size]


def _entries(content: bytes, byte_order: str, nested: bool = False) -> list[Value]:
    """The entries of an array in column-major order.

    `nested` means that the array is in a cell, so it may not contain cells itself.
    """
    elements = _elements(content, byte_order)
    (_, flags), (_, shape), _ = (next(elements, (0, b"")) for _ in range(3))
    (flag_bits,) = struct.unpack_from(f"{byte_order}I", flags)
    rows, columns = struct.unpack(f"{byte_order}ii", shape)
    # max also limits the rows of an array without columns, and vice versa.
    if rows < 0 or columns < 0 or max(rows, 1) * max(columns, 1) > _MAX_ENTRIES:
        raise _MatlabError(f"an array has the invalid shape {rows} x {columns}")
    array_class = flag_bits & 0xFF
    if array_class == _TEXT:
        return [*_text_rows(*next(elements, _NO_DATA), rows, byte_order)]
    entries: list[Value]
    if array_class == _CELLS and not nested:
        entries = [_cell_value(*element, byte_order) for element in islice(elements, _MAX_ENTRIES)]
    elif array_class in _NUMBERS and not flag_bits & _COMPLEX:
        element_type, data = next(elements, _NO_DATA)
        if element_type not in _NUMBER_TYPES:
            raise _MatlabError(f"an array's numbers have the unsupported type {element_type}")
        # A number has at most 8 bytes.
        if len(data) > rows * columns * 8:
            raise _MatlabError(f"an array of {rows} x {columns} has too many bytes ({len(data)})")
        number_format = byte_order + _NUMBER_TYPES[element_type]
        entries = [number for (number,) in struct.iter_unpack(number_format, data)]
    else:
        raise _MatlabError(
            f"an array has the unsupported class {array_class}; only real numbers, text and cells "
            "of these can be read"
        )
    if len(entries) != rows * columns:
        raise _MatlabError(f"an array of {rows} x {columns} has {len(entries)} entries")
    return entries


def _cell_value(element_type: int, content: bytes, byte_order: str) -> Value:
    """The text or number in a cell, or None if the cell is empty."""
    if element_type != _MATRIX:
        raise _MatlabError(f"an element of type {element_type} is not a cell")
    entries = _entries(content, byte_order, nested=True) if content else []
    if len(entries) > 1:
        raise _MatlabError("a cell contains more than one text or number")
    return entries[0] if entries else None


def _text_rows(element_type: int, data: bytes, rows: int, byte_order: str) -> Iterator[str]:
    """Yield the rows of a text array."""
    if element_type not in _TEXT_ENCODINGS:
        raise _MatlabError(f"an array's text has the unsupported type {element_type}")
    encoding = _TEXT_ENCODINGS[element_type]
    if encoding != "utf-8":
        encoding += "-le" if byte_order == "<" else "-be"
    text = data.decode(encoding)
    if text and (rows < 1 or len(text) % rows):
        raise _MatlabError(f"a text array of {rows} rows has {len(text)} characters")
    # Characters are stored in column-major order.
    yield from (text[row::rows] for row in range(rows if text else 0))
