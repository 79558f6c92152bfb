"""What lies where in a folder of tensors, read from torch.distributed.checkpoint's index.

The index is a pickle. It is interpreted without a live class (`margrave.files.read_inert`), and the
one that torch then works with is built here, of checked numbers: so no entry can be anything but a
tensor, which torch reads without running anything, or lie outside of the folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from margrave.files import Record, read_bytes, read_inert, shown

DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
METADATA, FILESYSTEM = (
    f"torch.distributed.checkpoint.{part}" for part in ("metadata", "filesystem")
)
PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
NAMES = frozenset(
    {
        *((METADATA, name) for name in (
            "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
            "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )),
        (FILESYSTEM, "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        *(("torch", name) for name in DTYPES),
        *((module, name) for module in ("pathlib", "pathlib._local") for name in PATHS),
    }
)  # fmt: skip
KIND = "index of a checkpoint"
LARGEST = 2**62
"""Bytes and numbers beyond this are no tensor's."""


def read_index(path: Path) -> Metadata:
    """The index that a folder's file describes, of tensors alone.

    Raises:
        ValueError: unreadable, damaged, or of something else than tensors in this folder.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read, so it is damaged ({error.strerror})") from error
    described = read_inert(data, str(path), NAMES, KIND)
    try:
        root = _record(described, "Metadata")
        tensors: dict[str, Any] = {
            _text(name): _tensor(entry)
            for name, entry in _mapping(root["state_dict_metadata"]).items()
        }
        storage = {
            _place(place): _part(part, path.parent)
            for place, part in _mapping(root["storage_data"]).items()
        }
    # A damaged file can lack anything anywhere.
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no {KIND}: {error}") from error
    unknown = {place.fqn for place in storage} - set(tensors)
    if unknown:
        raise ValueError(f"{path} is damaged: parts of {min(unknown)!r} belong to no tensor")
    return Metadata(tensors, None, storage, StorageMeta())


def _record(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Record) or value.name[1] != name:
        raise ValueError(f"no {name} where one belongs")
    return _mapping(value.state)


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where entries belong")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where a name belongs")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{shown(value)} where a size belongs")
    return value


def _size(value: Any) -> torch.Size:
    if not isinstance(value, Record) or value.name != ("torch", "Size"):
        raise ValueError("no torch.Size where one belongs")
    (sizes,) = value.arguments
    size = torch.Size(_count(one) for one in sizes)
    if math.prod(size) >= LARGEST:
        raise ValueError(f"a tensor of shape {tuple(size)}")
    return size


def _tensor(value: Any) -> TensorStorageMetadata:
    entry = _record(value, "TensorStorageMetadata")
    properties = entry["properties"]
    if not isinstance(properties, Record) or not isinstance(properties.state, tuple):
        raise ValueError("no TensorProperties where they belong")
    kind = getattr(properties.state[0], "name", ("", ""))
    if kind[0] != "torch" or kind[1] not in DTYPES:
        raise ValueError("a tensor of an unknown type")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[kind[1]]),
        size=_size(entry["size"]),
        chunks=[
            ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"]))
            for chunk in (_record(one, "ChunkStorageMetadata") for one in entry["chunks"])
        ],
    )


def _place(value: Any) -> MetadataIndex:
    place = _record(value, "MetadataIndex")
    offset, number = place.get("offset"), place.get("index")
    return MetadataIndex(
        _text(place["fqn"]),
        None if offset is None else _size(offset),
        None if number is None else _count(number),
    )


def _part(value: Any, folder: Path) -> _StorageInfo:
    part = _record(value, "_StorageInfo")
    name = _text(part["relative_path"])
    # As torch names a rank's files; anything else could lie anywhere.
    if not re.fullmatch(r"__\d+_\d+\.distcp", name):
        raise ValueError(f"a part lies in {name[:60]!r}")
    if part.get("transform_descriptors"):
        raise ValueError("a part is transformed")
    start, length = _count(part["offset"]), _count(part["length"])
    if start + length > (folder / name).stat().st_size:
        raise ValueError(f"a part ends beyond {name}")
    return _StorageInfo(name, start, length)
