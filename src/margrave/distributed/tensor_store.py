"""Named tensors in a folder, written by any number of ranks and read by any other number.

The engine is torch.distributed.checkpoint, whose index of what lies where is read by
`margrave.distributed.checkpoint_index`, without running anything.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as store
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from margrave.distributed.checkpoint_index import read_index
from margrave.distributed.world import World

INDEX = ".metadata"


class _Reader(store.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        index = read_index(Path(self.path) / INDEX)
        assert index.storage_meta is not None
        index.storage_meta.load_id = self.load_id
        return index


def save_tensors(
    folder: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, int], world: World
) -> None:
    """Write tensors into a folder; every rank calls it.

    Args:
        folder: on a file system that all ranks see.
        tensors: by name; what is not split is the same on every rank and written once.
        rows: of those whose first dimension is split over ranks as by `owned_classes`, how many
            rows all ranks have together.
        world: the ranks.

    Raises:
        OSError: the disk is full, or cannot be written to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_tensors(Path(folder), {"weight": torch.arange(3)}, {"weight": 3}, World())
    ...     found = {"weight": torch.zeros(3, dtype=torch.int64)}
    ...     load_tensors(Path(folder), found, {"weight": 3}, World())
    ...     found["weight"].tolist()
    [0, 1, 2]
    """
    try:
        with _quietly():
            store.save(
                _as_a_whole(tensors, rows, world),
                storage_writer=store.FileSystemWriter(folder),
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        free = shutil.disk_usage(folder.parent).free
        raise OSError(
            f"{folder} cannot be written, with {free / 1e6:.0f} MB free there "
            f"({_reasons(error)}); what was written before stands"
        ) from error


def load_tensors(
    folder: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, int], world: World
) -> None:
    """Fill tensors with what a folder holds of them, whatever world wrote it.

    Args:
        folder: of `save_tensors`.
        tensors: filled in place; all of them must be there, of the same shape.
        rows: as for `save_tensors`.
        world: the ranks.

    Raises:
        ValueError: the folder is damaged, or lacks a tensor.
    """
    try:
        with _quietly():
            store.load(
                _as_a_whole(tensors, rows, world),
                storage_reader=_Reader(folder),
                no_dist=world.size == 1,
            )
    except CheckpointException as error:
        raise ValueError(f"{folder}: damaged or incomplete ({_reasons(error)})") from error


def _reasons(error: CheckpointException) -> str:
    """Each rank's error, without its traceback; damaged bytes can fail with nearly anything."""
    causes = (cause for cause, _ in error.failures.values())
    return "; ".join({f"{type(cause).__name__}: {cause}" for cause in causes})


def stored_tensors(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape, over all ranks, and type of every tensor in a folder.

    Raises:
        ValueError: the folder is damaged or none of `save_tensors`.
    """
    found = _Reader(folder).read_metadata().state_dict_metadata
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _as_a_whole(
    tensors: Mapping[str, Tensor], rows: Mapping[str, int], world: World
) -> dict[str, Any]:
    """The same storage, described as parts of what all ranks have together."""
    whole: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors.items()}
    if world.size == 1:
        return whole
    for name, count in rows.items():
        local = whole[name]
        mesh = init_device_mesh(local.device.type, (world.size,))
        shape = torch.Size((count, *local.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        whole[name] = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
        )
    return whole


@contextmanager
def _quietly() -> Iterator[None]:
    """A world of one is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
