"""What a file holds, by its first bytes instead of its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

from margrave.files.ordinary import ordinary

FileKind = Literal["safetensors", "checkpoint", "onnx", "pickle", "records", "unknown"]

ZIP = b"PK\x03\x04"
# torch.save before 1.6: a pickled number, 0x1950A86A20F9469CFC6C.
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PICKLE = b"\x80"
RECORDS = (0xCED7230A).to_bytes(4, "little")
LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by the format."""

VARINT, BYTES = 0, 2
# Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, ModelProto.
MODEL_FIELDS = {
    1: VARINT, 2: BYTES, 3: BYTES, 4: BYTES, 5: VARINT, 6: BYTES, 7: BYTES, 8: BYTES,
    14: BYTES, 20: BYTES, 25: BYTES, 26: BYTES,
}  # fmt: skip
GRAPH = 7
MOST_FIELDS = 100_000
"""Of a model: its functions and properties; reading more one by one would take too long."""


def file_kind(path: str | os.PathLike[str]) -> FileKind:
    """What kind of file lies at a path, whatever it is called.

    ``checkpoint`` is what ``torch.save`` writes, ``pickle`` any other pickle (verification sets),
    ``records`` MXNet's RecordIO. A folder, an empty or missing file is ``unknown``.
    """
    try:
        with open(path, "rb", opener=ordinary) as file:
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
    """Whether a file is an ONNX model by its content; by its name where the content is damaged."""
    kind = file_kind(path)
    return kind == "onnx" or (kind == "unknown" and Path(path).suffix.lower() == ".onnx")


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file is safetensors, likewise."""
    kind = file_kind(path)
    named = Path(path).suffix.lower() == ".safetensors"
    return kind == "safetensors" or (kind in ("unknown", "pickle") and named)


def _is_safetensors(start: bytes, size: int) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 2 <= length <= min(LONGEST_HEADER, size - 8)


def _is_onnx(file: BinaryIO, size: int) -> bool:
    """Whether the file is one protobuf message with the fields of a model, a graph among them."""
    place, has_graph = 0, False
    for _ in range(MOST_FIELDS):
        if place >= size:
            break
        file.seek(place)
        head = file.read(20)
        tag, used = _varint(head, 0)
        number, wire_type = tag >> 3, tag & 7
        if used < 0 or MODEL_FIELDS.get(number) != wire_type:
            return False
        value, used = _varint(head, used)
        if used < 0:
            return False
        place += used + (value if wire_type == BYTES else 0)
        has_graph |= number == GRAPH
    return has_graph and place == size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number and where it ends; -1 where it does not."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    return 0, -1
