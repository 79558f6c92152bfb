"""Stores named tensors in a folder, which any number of ranks can read.

torch.distributed.checkpoint does the work. Its index is a pickle, which
`margrave.distributed.checkpoint_index` reads without executing anything in it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from margrave.distributed.checkpoint_index import read_index
from margrave.distributed.world import World

INDEX = ".metadata"


class _Reader(dcp.FileSystemReader):
    """torch's reader, except that it never unpickles the index."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        index = read_index(Path(self.path) / INDEX)
        assert index.storage_meta is not None
        # torch's reader also sets this id.
        index.storage_meta.load_id = self.load_id
        return index


def save_tensors(
    folder: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, int], world: World
) -> None:
    """Write tensors into a folder; every rank must call this function.

    Args:
        folder: the folder, on a file system that all ranks see.
        tensors: this rank's tensors, by name. Tensors that are not sharded must be equal on every
            rank and are written once.
        rows: name of each sharded tensor -> its number of rows over all ranks. Each rank has a
            contiguous block of the rows, see `owned_classes`.
        world: the ranks.

    Raises:
        OSError: the folder cannot be written, for example because the disk is full.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_tensors(Path(folder), {"weight": torch.arange(3)}, {"weight": 3}, World())
    ...     entries = {"weight": torch.zeros(3, dtype=torch.int64)}
    ...     load_tensors(Path(folder), entries, {"weight": 3}, World())
    ...     entries["weight"].tolist()
    [0, 1, 2]
    """
    try:
        with _suppress_warning():
            dcp.save(
                _with_full_shapes(tensors, rows, world),
                storage_writer=dcp.FileSystemWriter(folder),
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        free = shutil.disk_usage(folder.parent).free
        raise OSError(
            f"{folder} cannot be written ({free / 1e6:.0f} MB free there; "
            f"{_describe_errors(error)}); earlier checkpoints are unchanged"
        ) from error


def load_tensors(
    folder: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, int], world: World
) -> None:
    """Fill tensors with the values stored in a folder that any number of ranks wrote.

    Args:
        folder: a folder written by `save_tensors`.
        tensors: this rank's tensors, by name, to fill in place; their full shapes (over all ranks)
            must be those in the folder.
        rows: as for `save_tensors`.
        world: the ranks.

    Raises:
        ValueError: the folder is damaged or lacks a tensor.
    """
    try:
        with _suppress_warning():
            dcp.load(
                _with_full_shapes(tensors, rows, world),
                storage_reader=_Reader(folder),
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        raise ValueError(f"{folder}: damaged or incomplete ({_describe_errors(error)})") from error


def _describe_errors(error: CheckpointException) -> str:
    """The types and messages of the ranks' errors, without tracebacks or repetitions."""
    causes = (cause for cause, _ in error.failures.values())
    return "; ".join({f"{type(cause).__name__}: {cause}" for cause in causes})


def stored_tensors(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The full shape (over all ranks) and dtype of every tensor in a folder.

    Raises:
        ValueError: the folder is damaged or was not written by `save_tensors`.
    """
    stored = _Reader(folder).read_metadata().state_dict_metadata
    return {
        name: (metadata.size, metadata.properties.dtype)
        for name, metadata in stored.items()
        if isinstance(metadata, TensorStorageMetadata)
    }


def _with_full_shapes(
    tensors: Mapping[str, Tensor], rows: Mapping[str, int], world: World
) -> dict[str, Any]:
    """The tensors, where each sharded one is a DTensor with the full shape over all ranks."""
    full: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items()}
    if world.size == 1:
        return full
    for name, count in rows.items():
        local = full[name]
        mesh = init_device_mesh(local.device.type, (world.size,))
        shape = torch.Size((count, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        full[name] = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )
    return full


@contextmanager
def _suppress_warning() -> Iterator[None]:
    """Context that suppresses torch's warning that torch.distributed is not in use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
