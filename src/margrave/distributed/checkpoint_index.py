"""Reads torch.distributed.checkpoint's index of a folder of tensors, without unpickling it.

The index is a pickle. `margrave.files.read_inert` parses it without creating the objects it names.
This module checks the parsed values and builds torch's index object from them. Every entry of that
object is a tensor in a file of the folder, which torch reads without executing anything.
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
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
METADATA, FILESYSTEM = (
    f"torch.distributed.checkpoint.{module}" for module in ("metadata", "filesystem")
)
PATH_CLASSES = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
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
        *((module, name) for module in ("pathlib", "pathlib._local") for name in PATH_CLASSES),
    }
)  # fmt: skip
"""The (module, name) pairs that the pickle may refer to."""
KIND = "checkpoint index"
"""What messages call the file."""
MAX_SIZE = 2**62
"""Sizes and offsets from this value on are rejected as damaged."""


def read_index(path: Path) -> Metadata:
    """Read the index of a folder of tensors, as the object that torch's reader uses.

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
        root = _object_state(content, "Metadata")
        tensors: dict[str, Any] = {
            _checked_name(name): _tensor_metadata(metadata)
            for name, metadata in _checked_mapping(root["state_dict_metadata"]).items()
        }
        storage = {
            _tensor_index(index): _storage_info(info, path.parent)
            for index, info in _checked_mapping(root["storage_data"]).items()
        }
    # In a damaged file, anything may be missing or have the wrong type.
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a {KIND}: {error}") from error
    undescribed = {index.fqn for index in storage} - set(tensors)
    if undescribed:
        raise ValueError(
            f"{path} is damaged: tensor {min(undescribed)!r} has data, but no shape and dtype"
        )
    return Metadata(tensors, None, storage, StorageMeta())


def _object_state(value: Any, name: str) -> Mapping[str, Any]:
    """The attributes of a pickled object whose class must have this name."""
    if not isinstance(value, PickledObject) or value.name[1] != name:
        raise ValueError(f"expected a {name}")
    return _checked_mapping(value.state)


def _checked_mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a dict, got {type(value).__name__}")
    return value


def _checked_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a name, got {type(value).__name__}")
    return value


def _checked_size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_SIZE:
        raise ValueError(f"expected a size, got {describe_value(value)}")
    return value


def _shape(value: Any) -> torch.Size:
    if not isinstance(value, PickledObject) or value.name != ("torch", "Size"):
        raise ValueError("expected a torch.Size")
    (sizes,) = value.arguments
    shape = torch.Size(_checked_size(size) for size in sizes)
    if math.prod(shape) >= MAX_SIZE:
        raise ValueError(f"tensor shape {tuple(shape)} is too large")
    return shape


def _tensor_metadata(value: Any) -> TensorStorageMetadata:
    metadata = _object_state(value, "TensorStorageMetadata")
    properties = metadata["properties"]
    state = properties.state if isinstance(properties, PickledObject) else None
    # TensorProperties are pickled as a tuple that begins with the dtype.
    if not isinstance(state, tuple) or not state:
        raise ValueError("expected TensorProperties")
    module, dtype_name = getattr(state[0], "name", ("", ""))
    if module != "torch" or dtype_name not in DTYPES:
        raise ValueError("unknown tensor dtype")
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[dtype_name]),
        size=_shape(metadata["size"]),
        chunks=[
            ChunkStorageMetadata(_shape(chunk["offsets"]), _shape(chunk["sizes"]))
            for chunk in (
                _object_state(item, "ChunkStorageMetadata") for item in metadata["chunks"]
            )
        ],
    )


def _tensor_index(value: Any) -> MetadataIndex:
    index = _object_state(value, "MetadataIndex")
    offset, position = index.get("offset"), index.get("index")
    return MetadataIndex(
        _checked_name(index["fqn"]),
        None if offset is None else _shape(offset),
        None if position is None else _checked_size(position),
    )


def _storage_info(value: Any, folder: Path) -> _StorageInfo:
    info = _object_state(value, "_StorageInfo")
    name = _checked_name(info["relative_path"])
    # torch names each rank's files like this; other names could point outside the folder.
    if not re.fullmatch(r"__\d+_\d+\.distcp", name):
        raise ValueError(f"unexpected file name {name[:60]!r}")
    if info.get("transform_descriptors"):
        raise ValueError("transformed tensors are not supported")
    start, length = _checked_size(info["offset"]), _checked_size(info["length"])
    if start + length > (folder / name).stat().st_size:
        raise ValueError(f"a tensor ends beyond the end of {name}")
    return _StorageInfo(name, start, length)
