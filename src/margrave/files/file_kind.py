"""Detect a file's format from its first bytes instead of its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

from margrave.files.regular import open_regular

FileKind = Literal["safetensors", "checkpoint", "onnx", "pickle", "records", "unknown"]

ZIP = b"PK\x03\x04"
# torch.save before PyTorch 1.6 begins with the pickled number 0x1950A86A20F9469CFC6C.
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLE = b"\x80"
RECORDS = (0xCED7230A).to_bytes(4, "little")
MAX_HEADER_BYTES = 100_000_000
"""Maximum size of a safetensors header, from the format specification."""

# Protobuf's wire types, and those of an ONNX model's fields by number.
# Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ModelProto.
VARINT, BYTES = 0, 2
MODEL_FIELDS = {
    1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES,
    14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES,
}  # fmt: skip
GRAPH = 7
MAX_FIELDS = 100_000
"""Maximum number of fields of an ONNX model to inspect; more would take too long."""


def file_kind(path: str | os.PathLike[str]) -> FileKind:
    """Detect a file's format by its content.

    ``checkpoint`` is a file of ``torch.save``, ``pickle`` any other pickle (verification sets), and
    ``records`` MXNet's RecordIO. Folders and empty or missing files are ``unknown``.
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
    """Whether a file is an ONNX model, by its content or, if that is damaged, by its name."""
    kind = file_kind(path)
    return kind == "onnx" or (kind == "unknown" and Path(path).suffix.lower() == ".onnx")


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file is safetensors, by its content or, if that is damaged, by its name."""
    kind = file_kind(path)
    named = Path(path).suffix.lower() == ".safetensors"
    return kind == "safetensors" or (kind in ("unknown", "pickle") and named)


def _is_safetensors(start: bytes, size: int) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= length <= min(MAX_HEADER_BYTES, size - 8)


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the file is a protobuf message with an ONNX model's fields, including a graph."""
    position, has_graph = 0, False
    for _ in range(MAX_FIELDS):
        if position >= size:
            break
        file.seek(position)
        head = file.read(20)
        tag, used = _varint(head, 0)
        number, wire_type = tag >> 3, tag & 7
        if used < 0 or MODEL_FIELDS.get(number) != wire_type:
            return False
        value, used = _varint(head, used)
        if used < 0:
            return False
        position += used + (value if wire_type == BYTES else 0)
        has_graph |= number == GRAPH
    return has_graph and position == size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length number and the position after it; the position is -1 if it is truncated."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        value |= (data[position] & 127) << shift
        position += 1
        if data[position - 1] < 128:
            return value, position
    return 0, -1
