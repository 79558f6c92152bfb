"""The files beside an ONNX model that hold its weights, read from the model's own bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        # Other readers drop what goes beyond 32 bits, and would see another field than this.
        if tag >> 32:
            raise IndexError("a field's number is too large")
        kind = tag & 7
        if kind == VARINT:
            _, place = _varint(data, place)
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
