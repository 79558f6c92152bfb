"""A run's checkpoints: everything that training needs to go on as if it had never stopped.

A checkpoint is a folder ``checkpoint-N`` of tensors and a ``state.json``. It is written under
another name and renamed when it is whole and on disk, so that whatever bears the name can be
trusted; the former one is removed after that. Any number of ranks reads it.
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
STATE = "state.json"


def _is_position(value: Any) -> bool:
    names = {"epoch", "batch", "step"}
    return isinstance(value, dict) and value.keys() == names and all(map(_is_count, value.values()))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_texts(value: Any) -> bool:
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


FIELDS: dict[str, Callable[[Any], bool]] = {
    "position": _is_position,
    "optimizer": lambda value: isinstance(value, str),
    "images": lambda value: isinstance(value, dict),
    "batches": _is_mapping_or_missing,
    "order": _is_mapping_or_missing,
    "unreadable": _is_texts,
    "log_length": _is_count,
    "loss_scale": _is_loss_scale,
}
"""What a state holds. Later versions may add fields; older ones lack some."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return max(_checkpoints(folder), key=_number, default=None)


def _checkpoints(folder: Path) -> list[Path]:
    """Those that `save_checkpoint` named; others, such as copies by hand, are the user's own."""
    return [
        path
        for path in folder.glob(f"{PREFIX}*")
        if re.fullmatch(r"[0-9]{1,18}", path.name.removeprefix(PREFIX)) and path.is_dir()
    ]


def _number(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def save_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, int],
    world: World,
) -> None:
    """Write a checkpoint that replaces the former one only when it is whole and on disk.

    Args:
        folder: of the run.
        state: what JSON can hold; the first rank's is kept.
        tensors: by name.
        rows: see `margrave.distributed.tensor_store.save_tensors`.
        world: the ranks, all of which call this.
    """
    former = latest_checkpoint(folder)
    name = f"{PREFIX}{_number(former) + 1 if former else 1}"
    # A file system may show the ranks different things for a while.
    name = gather_objects(name, world)[0]
    unfinished = folder / f".{name}"
    if world.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    gather_objects(None, world)
    try:
        save_tensors(unfinished, tensors, rows, world)
    except OSError:
        # Half a checkpoint would fill a disk for nothing.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if world.rank == 0:
        with atomic_write(unfinished / STATE) as temporary:
            temporary.write_text(json.dumps({"format_version": FORMAT_VERSION, **state}))
        os.rename(unfinished, folder / name)
        for path in set(_checkpoints(folder)) - {folder / name}:
            # Under a name that nobody takes for a whole one while it goes.
            leaving = folder / f".{path.name}"
            os.rename(path, leaving)
            shutil.rmtree(leaving)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors; nothing in it is executed.

    Raises:
        ValueError: damaged, or of another format.
    """
    path = checkpoint / STATE
    try:
        state = read_json(read_bytes(path), STATE)
        version = state["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged or no checkpoint of Margrave ({error})") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {version!r:.30}, this Margrave reads {FORMAT_VERSION}; "
            "resume with the version of Margrave that wrote it"
        )
    faults = [name for name, fits in FIELDS.items() if not fits(state.get(name))]
    if faults:
        raise ValueError(f"{path}: damaged or no checkpoint of Margrave ({', '.join(faults)})")
    return state


def remove_checkpoints(folder: Path) -> None:
    """Delete a former run's, so that an interrupted new one is not resumed from it."""
    for path in _checkpoints(folder):
        shutil.rmtree(path)


def remove_unfinished(folder: Path) -> None:
    """Delete what writes that were cut off left behind."""
    for path in folder.glob(f".{PREFIX}*"):
        shutil.rmtree(path)
    for name in ("model.safetensors", "config.yaml", "results.json"):
        for leftover in folder.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)
