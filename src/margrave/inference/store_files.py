"""Read and validate the files of a feature store: header, block lines and mapped arrays."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from margrave.files import atomic_write, open_regular, read_bytes, read_json

FORMAT_VERSION = 1
HEADER = "features.json"
MAX_COUNT = 2**48
"""Exclusive upper limit for the numbers of rows and columns that a file declares."""
REMEDY = "delete the folder and embed again, or, if it is a copy, copy it again"


def flush(path: Path) -> None:
    """Force pending changes of a file to disk, including changes made through a memory map."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def write_header(folder: Path, description: dict[str, Any]) -> None:
    """Write features.json with its checksum."""
    content = {**description, "checksum": checksum(description)}
    with atomic_write(folder / HEADER) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def checksum(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description, independent of indentation and key order."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def read_header(folder: Path) -> dict[str, Any]:
    """Read and validate features.json; return its content without the checksum."""
    path = folder / HEADER
    if not path.is_file():
        raise ValueError(f"{folder} has no {HEADER}; create a feature store with margrave embed")
    try:
        header = read_json(path.read_text(encoding="utf-8"), HEADER)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if not isinstance(header, dict) or any(
        not _has_type(header.get(key), expected) for key, expected in _HEADER_FIELDS.items()
    ):
        fields = ", ".join(_HEADER_FIELDS)
        raise ValueError(f"{path} is damaged: one of {fields} is missing or invalid; {REMEDY}")
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {header['format_version']}, but this version of Margrave "
            f"reads {FORMAT_VERSION}; delete the folder and embed again, or use the other version"
        )
    stored_checksum = header.pop("checksum", None)
    if stored_checksum is None:
        warnings.warn(
            f"{path} has no checksum because Margrave 0.1 wrote it, so its model and preprocessing "
            "are not verified; embed again to add a checksum",
            stacklevel=3,
        )
    elif stored_checksum != checksum(header):
        raise ValueError(f"{path} is damaged: its checksum differs; {REMEDY}")
    images, identities = header["images"], header["identities"]
    if not all(isinstance(images.get(key), str) for key in ("digest", "source")):
        raise ValueError(f"{path} is damaged: 'images' has no digest or no source; {REMEDY}")
    if not all(isinstance(name, str) for name in identities):
        raise ValueError(f"{path} is damaged: an identity is not a string; {REMEDY}")
    # The width is 0 until the first block is embedded.
    for field, minimum in (("count", 1), ("width", 0)):
        if not minimum <= header[field] < MAX_COUNT:
            raise ValueError(
                f"{path} is damaged: {field} = {str(header[field])[:30]} is out of range; {REMEDY}"
            )
    return header


_HEADER_FIELDS: dict[str, type] = {
    "card": dict, "count": int, "width": int, "flips": bool, "images": dict, "identities": list,
    "format_version": int,
}  # fmt: skip


def _has_type(value: Any, expected: type) -> bool:
    """Whether a JSON value has the expected type; unlike in Python, a bool is not an int."""
    return isinstance(value, expected) and not (expected is int and isinstance(value, bool))


def read_blocks(folder: Path, *, repair: bool = False) -> list[dict[str, Any]]:
    """Read the lines of blocks.jsonl, ignoring an incomplete last line.

    Args:
        folder: the store's folder.
        repair: remove an incomplete last line, so that more lines can be appended.

    Raises:
        ValueError: the file cannot be read, or a complete line is damaged.
    """
    path = folder / "blocks.jsonl"
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
    complete = content[: content.rfind(b"\n") + 1]
    if repair and len(complete) < len(content):
        os.truncate(path, len(complete))
    blocks: list[dict[str, Any]] = []
    stop = 0
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            block = read_json(line, "the line")
            is_valid = _is_block(block, stop)
        except ValueError:
            block, is_valid = {}, False
        if not is_valid:
            raise ValueError(f"{path}:{number} is damaged: {line[:80]!r}; {REMEDY}")
        blocks.append(block)
        stop = block["stop"]
    return blocks


def _is_block(block: Any, start: int) -> bool:
    """Whether a JSON value describes a block of rows that begins at `start`."""
    if not isinstance(block, dict) or not all(
        _has_type(block.get(key), expected)
        for key, expected in (("start", int), ("stop", int), ("digest", str), ("unreadable", dict))
    ):
        return False
    stop = block["stop"]
    # All row numbers are lower than MAX_COUNT; int() is slow or fails for very long strings.
    return block["start"] == start < stop < MAX_COUNT and all(
        row.isascii() and row.isdecimal() and len(row) < 19 and start <= int(row) < stop
        and isinstance(reason, str)
        for row, reason in block["unreadable"].items()
    )  # fmt: skip


def open_array(
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: type[np.generic] | None,
    mode: Literal["r", "r+"] = "r",
) -> np.ndarray:
    """Map an array file into memory, after checking its header and size.

    Args:
        folder: the store's folder.
        name: the array's name; the file is ``NAME.npy``.
        shape: the expected shape.
        dtype: the expected dtype; None expects byte strings of any length.
        mode: ``r`` to read, ``r+`` to write too.

    Raises:
        ValueError: the file cannot be read, or its shape, dtype or size is wrong.
    """
    path = folder / f"{name}.npy"
    try:
        with open(path, "rb", opener=open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"its .npy version is {version}, expected (1, 0)")
            actual_shape, fortran_order, actual_dtype = np.lib.format.read_array_header_1_0(file)
            offset = file.tell()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
    # Damaged headers make NumPy's parser raise many kinds of exceptions.
    except Exception as error:
        reason = str(error)[:200] or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}); {REMEDY}") from error
    if dtype is None:
        dtype_matches = actual_dtype.kind == "S" and actual_dtype.itemsize > 0
    else:
        dtype_matches = actual_dtype == dtype
    if actual_shape != shape or not dtype_matches or (fortran_order and len(shape) > 1):
        order = " in Fortran order" * fortran_order
        expected_type = "byte strings" if dtype is None else np.dtype(dtype).name
        raise ValueError(
            f"{path} contains {str(actual_dtype)[:60]} {str(actual_shape)[:60]}{order}, expected "
            f"{expected_type} {shape}; {REMEDY}"
        )
    # Mapping beyond the end of a file would crash the process, or extend a file opened for writing.
    expected_size = offset + math.prod(shape) * actual_dtype.itemsize
    if size != expected_size:
        raise ValueError(f"{path} has {size} bytes, expected {expected_size}; {REMEDY}")
    try:
        return np.memmap(path, actual_dtype, mode, offset, shape)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {REMEDY}") from error
