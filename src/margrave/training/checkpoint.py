"""A run's checkpoints: everything that training needs to continue as if it had never stopped.

A checkpoint is a folder ``checkpoint-N`` that holds tensors and a ``state.json``; N counts the
run's checkpoints from 1. The folder is written under a temporary name and renamed once it is
complete and on disk, so every folder named ``checkpoint-N`` is complete. Only then is the previous
checkpoint removed. A checkpoint can be read by any number of ranks.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from margrave.distributed import World, gather_objects
from margrave.distributed.tensor_store import save_tensors
from margrave.files import atomic_write, read_bytes, read_json

FORMAT_VERSION = 2
PREFIX = "checkpoint-"
STATE_FILE = "state.json"


def _is_position(value: Any) -> bool:
    names = {"epoch", "batch", "step"}
    return isinstance(value, dict) and value.keys() == names and all(map(_is_count, value.values()))


def _is_count(value: Any) -> bool:
    # The upper bound rejects absurd values in a damaged file.
    return type(value) is int and 0 <= value < 2**62


def _is_string_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_mapping_or_missing(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_loss_scale(value: Any) -> bool:
    names = ("good_steps", "skipped_steps")
    return value is None or (
        isinstance(value, dict)
        and isinstance(value.get("scale"), int | float)
        and 0 < value["scale"] < 2**62
        and all(_is_count(value.get(name)) for name in names)
    )


def _is_measurement(value: Any) -> bool:
    def is_number(item: Any) -> bool:
        return item is None or type(item) in (int, float)

    if not isinstance(value, dict):
        return value is None
    if not value:
        return True
    vectors = [value.get(name) for name in ("margin", "feature_norm", "target_cosine")]
    return (
        value.keys() == {"margin", "feature_norm", "target_cosine", "hard_share", "hard_change"}
        and all(isinstance(vector, list) and all(map(is_number, vector)) for vector in vectors)
        and is_number(value["hard_share"])
        and is_number(value["hard_change"])
    )


FIELD_CHECKS: dict[str, Callable[[Any], bool]] = {
    "position": _is_position,
    "optimizer": lambda value: isinstance(value, str),
    "images": lambda value: isinstance(value, dict),
    "batches": _is_mapping_or_missing,
    "order": _is_mapping_or_missing,
    "unreadable": _is_string_mapping,
    "log_length": _is_count,
    "loss_scale": _is_loss_scale,
    "adaptation": _is_measurement,
}
"""Field of ``state.json`` -> the check that its value must pass. A missing field counts as None,
which the checks of optional fields accept. Other fields are not checked here."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return max(_list_checkpoints(folder), key=_checkpoint_number, default=None)


def _list_checkpoints(folder: Path) -> list[Path]:
    """The folders with a name that `save_checkpoint` gives.

    Folders with other names, such as manual copies, belong to the user.
    """
    return [
        path
        for path in folder.glob(f"{PREFIX}*")
        if re.fullmatch(r"[0-9]{1,18}", path.name.removeprefix(PREFIX)) and path.is_dir()
    ]


def _checkpoint_number(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, int],
    world: World,
) -> None:
    """Write a checkpoint; remove the previous one once the new one is complete and on disk.

    Args:
        folder: the run's folder.
        state: JSON values to store beside the tensors; the first rank's values are written.
        tensors: this rank's tensors, by name.
        rows: see `margrave.distributed.tensor_store.save_tensors`.
        world: the ranks; every rank must call this function.
    """
    previous = latest_checkpoint(folder)
    name = f"{PREFIX}{_checkpoint_number(previous) + 1 if previous else 1}"
    # A shared file system may briefly show different contents to the ranks, so all ranks use the
    # first rank's name.
    name = gather_objects(name, world)[0]
    unfinished = folder / f".{name}"
    if world.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    # Wait until the first rank has removed what an interrupted write left behind.
    gather_objects(None, world)
    try:
        save_tensors(unfinished, tensors, rows, world)
    except OSError:
        # An incomplete checkpoint would only waste disk space.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if world.rank == 0:
        with atomic_write(unfinished / STATE_FILE) as temporary:
            temporary.write_text(json.dumps({"format_version": FORMAT_VERSION, **state}))
        os.rename(unfinished, folder / name)
        for path in set(_list_checkpoints(folder)) - {folder / name}:
            # Rename it first, so that a half-deleted folder is never mistaken for a checkpoint.
            discarded = folder / f".{path.name}"
            os.rename(path, discarded)
            shutil.rmtree(discarded)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read and check the values in a checkpoint's ``state.json``; nothing in it is executed.

    Raises:
        ValueError: the file is damaged or has another format version.
    """
    path = checkpoint / STATE_FILE
    try:
        state = read_json(read_bytes(path), STATE_FILE)
        version = state["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged or not a Margrave checkpoint ({error})") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {version!r:.30}, but this version of Margrave reads format "
            f"{FORMAT_VERSION}; resume with the version of Margrave that wrote it"
        )
    invalid = [name for name, is_valid in FIELD_CHECKS.items() if not is_valid(state.get(name))]
    if invalid:
        raise ValueError(
            f"{path}: damaged or not a Margrave checkpoint (invalid: {', '.join(invalid)})"
        )
    return state


def remove_checkpoints(folder: Path) -> None:
    """Delete an earlier run's checkpoints, so that the new run cannot be resumed from them."""
    for path in _list_checkpoints(folder):
        shutil.rmtree(path)


def remove_unfinished(folder: Path) -> None:
    """Delete temporary files and folders that interrupted writes left behind."""
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path)
    for name in ("model.safetensors", "config.yaml", "results.json"):
        for leftover in folder.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)
