"""Reads torch.distributed.checkpoint's index of a folder of tensors, without unpickling it.

The index is a pickle. `margrave.files.read_inert` interprets it without creating any object, and
the index that torch uses is built here from checked values. So every entry is a tensor, which torch
reads without executing anything, and lies inside the folder.
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

from margrave.files import PickledObject, describe_value, read_bytes, read_inert

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
"""The (module, name) pairs that the pickle may refer to."""
KIND = "checkpoint index"
MAX_SIZE = 2**62
"""Sizes and offsets from here on are rejected as damaged."""


def read_index(path: Path) -> Metadata:
    """Read the index of a folder of tensors.

    Raises:
        ValueError: the file is unreadable or damaged, or has an entry that is not a tensor in this
            folder.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} is damaged: it cannot be read ({error.strerror})") from error
    content = read_inert(data, str(path), NAMES, KIND)
    try:
        root = _record(content, "Metadata")
        tensors: dict[str, Any] = {
            _text(name): _tensor(entry)
            for name, entry in _mapping(root["state_dict_metadata"]).items()
        }
        storage = {
            _tensor_index(index): _storage_info(info, path.parent)
            for index, info in _mapping(root["storage_data"]).items()
        }
    # In a damaged file, anything may be missing or have the wrong type.
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a {KIND}: {error}") from error
    unknown = {index.fqn for index in storage} - set(tensors)
    if unknown:
        raise ValueError(f"{path} is damaged: {min(unknown)!r} is stored but not described")
    return Metadata(tensors, None, storage, StorageMeta())


def _record(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, PickledObject) or value.name[1] != name:
        raise ValueError(f"expected a {name}")
    return _mapping(value.state)


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a dict, got {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a name, got {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_SIZE:
        raise ValueError(f"expected a size, got {describe_value(value)}")
    return value


def _size(value: Any) -> torch.Size:
    if not isinstance(value, PickledObject) or value.name != ("torch", "Size"):
        raise ValueError("expected a torch.Size")
    (sizes,) = value.arguments
    size = torch.Size(_count(one) for one in sizes)
    if math.prod(size) >= MAX_SIZE:
        raise ValueError(f"tensor shape {tuple(size)} is too large")
    return size


def _tensor(value: Any) -> TensorStorageMetadata:
    entry = _record(value, "TensorStorageMetadata")
    properties = entry["properties"]
    if not isinstance(properties, PickledObject) or not isinstance(properties.state, tuple):
        raise ValueError("expected TensorProperties")
    dtype = getattr(properties.state[0], "name", ("", ""))
    if dtype[0] != "torch" or dtype[1] not in DTYPES:
        raise ValueError("unknown tensor dtype")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[dtype[1]]),
        size=_size(entry["size"]),
        chunks=[
            ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"]))
            for chunk in (_record(one, "ChunkStorageMetadata") for one in entry["chunks"])
        ],
    )


def _tensor_index(value: Any) -> MetadataIndex:
    index = _record(value, "MetadataIndex")
    offset, number = index.get("offset"), index.get("index")
    return MetadataIndex(
        _text(index["fqn"]),
        None if offset is None else _size(offset),
        None if number is None else _count(number),
    )


def _storage_info(value: Any, folder: Path) -> _StorageInfo:
    info = _record(value, "_StorageInfo")
    name = _text(info["relative_path"])
    # The names that torch gives to a rank's files; other names could point outside the folder.
    if not re.fullmatch(r"__\d+_\d+\.distcp", name):
        raise ValueError(f"unexpected file name {name[:60]!r}")
    if info.get("transform_descriptors"):
        raise ValueError("transformed tensors are not supported")
    start, length = _count(info["offset"]), _count(info["length"])
    if start + length > (folder / name).stat().st_size:
        raise ValueError(f"a tensor ends beyond {name}")
    return _StorageInfo(name, start, length)
