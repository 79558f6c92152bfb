"""Detect a file's format from its content instead of its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

from margrave.files.regular import open_regular

FileKind = Literal["safetensors", "checkpoint", "onnx", "pickle", "records", "unknown"]

# PyTorch >= 1.6 saves ZIP archives.
ZIP = b"PK\x03\x04"
# Files that PyTorch < 1.6 saved begin with the pickled number 0x1950A86A20F9469CFC6C.
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# First instruction of a pickle of protocol 2 or later.
PICKLE = b"\x80"
# The magic number of MXNet's RecordIO.
RECORDS = (0xCED7230A).to_bytes(4, "little")
MAX_HEADER_BYTES = 100_000_000
"""Maximum size of a safetensors header, from the format specification."""

# Protobuf's wire types.
VARINT, BYTES = 0, 2
# Field number in an ONNX model (ModelProto) -> wire type.
# Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
MODEL_FIELDS = {
    1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES,
    14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES,
}  # fmt: skip
GRAPH = 7
"""Number of the field that contains the graph."""
MAX_FIELDS = 100_000
"""Maximum number of top-level fields to inspect, since inspecting more would take too long."""


def file_kind(path: str | os.PathLike[str]) -> FileKind:
    """Detect a file's format by its content.

    ``checkpoint`` means a file that ``torch.save`` wrote; ``pickle`` any other pickle of protocol 2
    or later, such as a verification set; ``records`` MXNet's RecordIO. Folders and empty or missing
    files are ``unknown``.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            start = file.read(16)
            size = os.fstat(file.fileno()).st_size
            if start.startswith((ZIP, LEGACY_TORCH)):
                return "checkpoint"
            if start.startswith(RECORDS):
                return "records"
            if _is_safetensors(start, size):
                return "safetensors"
            if start.startswith(PICKLE):
                return "pickle"
            return "onnx" if _is_onnx(file, size) else "unknown"
    except OSError:
        return "unknown"


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an ONNX model, by its content or, if that is not recognized, its suffix."""
    kind = file_kind(path)
    return kind == "onnx" or (kind == "unknown" and Path(path).suffix.lower() == ".onnx")


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file is safetensors, by its content or, if its header is invalid, by its suffix."""
    kind = file_kind(path)
    has_suffix = Path(path).suffix.lower() == ".safetensors"
    # A safetensors file begins with the header's length. If the first byte of the length is 0x80
    # and the header is invalid, the file looks like a pickle.
    return kind == "safetensors" or (kind in ("unknown", "pickle") and has_suffix)


def _is_safetensors(start: bytes, size: int) -> bool:
    header_bytes = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8)


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the file is a protobuf message with an ONNX model's fields, including a graph."""
    position, has_graph = 0, False
    for _ in range(MAX_FIELDS):
        if position >= size:
            break
        file.seek(position)
        # Enough for two variable-length integers: the tag, and the value or the number of bytes.
        head = file.read(20)
        tag, tag_length = _read_varint(head, 0)
        field, wire_type = tag >> 3, tag & 7
        if tag_length < 0 or MODEL_FIELDS.get(field) != wire_type:
            return False
        value, head_length = _read_varint(head, tag_length)
        if head_length < 0:
            return False
        position += head_length + (value if wire_type == BYTES else 0)
        has_graph |= field == GRAPH
    return has_graph and position == size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer and the position after it; (0, -1) if it is truncated or too long.

    Each byte holds 7 bits, and there are at most 10 bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        value |= (data[position] & 127) << shift
        position += 1
        if data[position - 1] < 128:
            return value, position
    return 0, -1
