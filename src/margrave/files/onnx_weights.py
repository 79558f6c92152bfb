"""Read an ONNX model's weights, external weight files and metadata without the onnx package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

# Protobuf's wire types.
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 64
"""Maximum nesting depth of protobuf messages; graphs with loops need only a few levels."""

# The fields that can contain tensors: message type -> field number -> message type in the field.
# Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}  # fmt: skip
METADATA = 14
"""Number of ModelProto's field for a metadata entry: a key (field 1) and a value (field 2)."""
# Fields of TensorProto.
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA, EXTERNAL_DATA = 1, 2, 4, 8, 9, 13
WEIGHT_TYPES = {
    1: np.dtype("<f4"), 3: np.dtype("i1"), 10: np.dtype("<f2"), 11: np.dtype("<f8"),
}  # fmt: skip
"""ONNX's data type number -> NumPy dtype, for the supported data types."""


def external_weights(path: Path) -> list[Path]:
    """The paths of the external files with a model's weights, sorted; most models have none.

    Raises:
        ValueError: the model is damaged, or names a file outside its folder.
    """
    data = memoryview(path.read_bytes())
    try:
        locations = sorted({str(bytes(name), "utf-8") for name in _locations(data, "model", 0)})
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not an ONNX model ({error})") from error
    for location in locations:
        parts = PurePosixPath(location.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in location or "\0" in location:
            raise ValueError(
                f"{path} has weights in {location!r}, outside its folder; export the model again "
                "with all files in one folder"
            )
    return [path.parent / location for location in locations]


def onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata of a model: key -> value.

    Raises:
        ValueError: the model is damaged.
    """
    metadata = {}
    try:
        for field, value in _bytes_fields(memoryview(path.read_bytes())):
            if field == METADATA:
                entry = {key: str(bytes(text), "utf-8") for key, text in _bytes_fields(value)}
                metadata[entry.get(1, "")] = entry.get(2, "")
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or not an ONNX model ({error})") from error
    return metadata


def onnx_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the values of each weight.

    Skips sparse tensors, unsupported data types, and tensors whose size in bytes does not match
    their shape.

    Raises:
        ValueError: the model is damaged, or one of its external files is truncated or missing.
    """
    # This raises an error if the model names files outside its folder.
    external_weights(path)
    data = memoryview(path.read_bytes())
    try:
        for encoded in _tensors(data, "model", 0):
            tensor = _decode_tensor(encoded, path)
            if tensor is not None:
                yield tensor
    except (IndexError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not an ONNX model ({error})") from error


def _tensors(data: memoryview, message_type: str, depth: int) -> Iterator[memoryview]:
    """Yield the dense tensors, still encoded, in a message of this type."""
    if depth > MAX_DEPTH:
        raise IndexError(f"messages are nested more than {MAX_DEPTH} levels deep")
    for field, value in _bytes_fields(data):
        inner_type = FIELDS[message_type].get(field)
        if inner_type == "tensor" and message_type != "sparse":
            yield value
        elif inner_type not in (None, "sparse", "tensor", "entry"):
            yield from _tensors(value, inner_type, depth + 1)


def _decode_tensor(encoded: memoryview, path: Path) -> tuple[str, np.ndarray] | None:
    """A tensor's name and values; None if its data type is unsupported or its size is wrong."""
    dims, data_type, name, external = [], 0, "", {}
    content: memoryview | bytes = b""
    for field, value in _all_fields(encoded):
        if field == DIMS and isinstance(value, int):
            dims.append(value)
        elif field == DIMS and not isinstance(value, int):
            # Repeated integers may be packed into one bytes field.
            position = 0
            while position < len(value):
                dim, position = _read_varint(value, position)
                dims.append(dim)
        elif field == DATA_TYPE and isinstance(value, int):
            data_type = value
        elif field == NAME and not isinstance(value, int):
            name = str(bytes(value), "utf-8", "replace")
        elif field in (RAW_DATA, FLOAT_DATA) and not isinstance(value, int):
            content = value
        elif field == EXTERNAL_DATA and not isinstance(value, int):
            entry = {key: str(bytes(text), "utf-8") for key, text in _bytes_fields(value)}
            external[entry.get(1, "")] = entry.get(2, "")
    if data_type not in WEIGHT_TYPES:
        return None
    count = 1
    for dim in dims:
        count *= dim
    length = count * WEIGHT_TYPES[data_type].itemsize
    if "location" in external:
        with open(path.parent / external["location"], "rb") as file:
            file_size = file.seek(0, os.SEEK_END)
            offset = int(external.get("offset") or 0)
            if not 0 <= offset <= file_size - length:
                raise IndexError("its external weight file is truncated")
            file.seek(offset)
            content = file.read(length)
    if len(content) != length:
        return None
    return name, np.frombuffer(content, WEIGHT_TYPES[data_type]).reshape(dims)


def _locations(data: memoryview, message_type: str, depth: int) -> Iterator[memoryview]:
    """Yield the names, still encoded, of the external files in a message of this type."""
    if depth > MAX_DEPTH:
        raise IndexError(f"messages are nested more than {MAX_DEPTH} levels deep")
    for field, value in _bytes_fields(data):
        inner_type = FIELDS[message_type].get(field)
        if inner_type == "entry":
            entry = dict(_bytes_fields(value))
            if entry.get(1) == b"location" and 2 in entry:
                yield entry[2]
        elif inner_type is not None:
            yield from _locations(value, inner_type, depth + 1)


def _bytes_fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the field number and the content of each bytes field of a protobuf message."""
    for field, value in _all_fields(data):
        if not isinstance(value, int):
            yield field, value


def _all_fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the field number and the value of each bytes or varint field of a protobuf message."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        # Other parsers use only the lowest 32 bits, so they would read a different field number.
        if tag >> 32:
            raise IndexError("a field's number is too large")
        wire_type = tag & 7
        if wire_type == VARINT:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
        elif wire_type == BYTES:
            size, position = _read_varint(data, position)
            if position + size > len(data):
                raise IndexError("it is truncated")
            yield tag >> 3, data[position : position + size]
            position += size
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise IndexError(f"a field has the unknown wire type {wire_type}")


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """A variable-length integer and the position after it; each byte holds 7 bits.

    Reading past the end raises an IndexError; other damage raises the same in this module.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise IndexError("a variable-length integer has more than 10 bytes")
