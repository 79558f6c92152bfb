"""The weights of an ONNX model and the files beside it that hold them, from its own bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
DEEPEST = 64
"""Messages within messages; graphs of loops and conditions nest a few."""

# The fields of ONNX's protobuf messages through which tensors are reached.
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
# Of a TensorProto.
DIMS, FLOAT_DATA, NAME, RAW_DATA = 1, 4, 8, 9
DATA_TYPE, DATA_LOCATION = 2, 14
NUMBERS = {
    1: np.dtype("<f4"), 3: np.dtype("i1"), 10: np.dtype("<f2"), 11: np.dtype("<f8"),
}  # fmt: skip
"""Types of the numbers in a tensor, as far as weights are read: float32, int8, float16, float64."""


def external_weights(path: Path) -> list[Path]:
    """The files beside a model that hold its weights, sorted; none for most models.

    Raises:
        ValueError: the model is damaged, or names a file outside of its folder.
    """
    data = memoryview(path.read_bytes())
    try:
        locations = sorted({str(bytes(each), "utf-8") for each in _locations(data, "model", 0)})
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or no ONNX model ({error})") from error
    for location in locations:
        parts = PurePosixPath(location.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in location or "\0" in location:
            raise ValueError(
                f"{path} keeps weights in {location!r}, outside of its own folder; export it again"
            )
    return [path.parent / location for location in locations]


def onnx_tensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of a model's weights; those of other types, or in sparse form, are skipped.

    Raises:
        ValueError: the model is damaged, or a file beside it that holds its weights.
    """
    external_weights(path)
    data = memoryview(path.read_bytes())
    try:
        for message in _tensors(data, "model", 0):
            tensor = _values(message, path)
            if tensor is not None:
                yield tensor
    except (IndexError, OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged or no ONNX model ({error})") from error


def _tensors(data: memoryview, message: str, depth: int) -> Iterator[memoryview]:
    if depth > DEEPEST:
        raise IndexError(f"more than {DEEPEST} messages within each other")
    for number, value in _fields(data):
        inner = FIELDS[message].get(number)
        if inner == "tensor" and message != "sparse":
            yield value
        elif inner not in (None, "sparse", "tensor", "entry"):
            yield from _tensors(value, inner, depth + 1)


def _values(message: memoryview, path: Path) -> tuple[str, np.ndarray] | None:
    """A tensor's name and numbers; None where they are of another type or not as announced."""
    dims, kind, name, outside = [], 0, "", {}
    content: memoryview | bytes = b""
    for number, value in _all_fields(message):
        if number == DIMS and isinstance(value, int):
            dims.append(value)
        elif number == DIMS and not isinstance(value, int):
            place = 0
            while place < len(value):
                size, place = _varint(value, place)
                dims.append(size)
        elif number == DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == NAME and not isinstance(value, int):
            name = str(bytes(value), "utf-8", "replace")
        elif number in (RAW_DATA, FLOAT_DATA) and not isinstance(value, int):
            content = value
        elif number == 13 and not isinstance(value, int):
            entry = {key: str(bytes(text), "utf-8") for key, text in _fields(value)}
            outside[entry.get(1, "")] = entry.get(2, "")
    if kind not in NUMBERS:
        return None
    count = 1
    for size in dims:
        count *= size
    length = count * NUMBERS[kind].itemsize
    if "location" in outside:
        with open(path.parent / outside["location"], "rb") as file:
            available = file.seek(0, 2)
            offset = int(outside.get("offset") or 0)
            if not 0 <= offset <= available - length:
                raise IndexError("its weights' file ends too early")
            file.seek(offset)
            content = file.read(length)
    if len(content) != length:
        return None
    return name, np.frombuffer(content, NUMBERS[kind]).reshape(dims)


def _locations(data: memoryview, message: str, depth: int) -> Iterator[memoryview]:
    if depth > DEEPEST:
        raise IndexError(f"more than {DEEPEST} messages within each other")
    for number, value in _fields(data):
        inner = FIELDS[message].get(number)
        if inner == "entry":
            entry = dict(_fields(value))
            if entry.get(1) == b"location" and 2 in entry:
                yield entry[2]
        elif inner is not None:
            yield from _locations(value, inner, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Each field of a protobuf message that is itself bytes, by its number."""
    for number, value in _all_fields(data):
        if not isinstance(value, int):
            yield number, value


def _all_fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Each field of a protobuf message that is bytes or a variable-length number."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        # Other readers drop what goes beyond 32 bits, and would see another field than this.
        if tag >> 32:
            raise IndexError("a field's number is too large")
        kind = tag & 7
        if kind == VARINT:
            value, place = _varint(data, place)
            yield tag >> 3, value
        elif kind == BYTES:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise IndexError("it ends too early")
            yield tag >> 3, data[place : place + size]
            place += size
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise IndexError(f"a field of the unknown type {kind}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise IndexError("a number without an end")
