"""Named tensors in a folder, written by any number of ranks and read by any other number.

The engine is torch.distributed.checkpoint. Its index of what lies where is a pickle, which is read
here by an unpickler that knows the index's own classes and nothing else.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as store
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from margrave.distributed.world import World

INDEX = ".metadata"
PARTS_OF_AN_INDEX = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"} | {str(kind).removeprefix("torch.") for kind in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    )},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in PARTS_OF_AN_INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint's index")
        return super().find_class(module, name)


class _Reader(store.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs
        path = Path(self.path) / INDEX
        try:
            with path.open("rb") as file:
                index = _IndexUnpickler(file).load()
            if not isinstance(index, Metadata):
                raise ValueError(f"holds a {type(index).__name__}")
        # Damaged bytes can fail with nearly anything.
        except Exception as error:
            raise ValueError(f"{path}: damaged, or no index of a checkpoint ({error})") from error
        index.storage_meta = index.storage_meta or StorageMeta()
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

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_tensors(Path(folder), {"weight": torch.arange(3)}, {"weight": 3}, World())
    ...     found = {"weight": torch.zeros(3, dtype=torch.int64)}
    ...     load_tensors(Path(folder), found, {"weight": 3}, World())
    ...     found["weight"].tolist()
    [0, 1, 2]
    """
    with _quietly():
        store.save(
            _as_a_whole(tensors, rows, world),
            storage_writer=store.FileSystemWriter(folder),
            no_dist=world.size == 1,
        )


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
        # Damaged bytes can fail with nearly anything; it holds each rank's error and traceback.
        reasons = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
        raise ValueError(f"{folder}: damaged or incomplete ({'; '.join(reasons)})") from error


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
