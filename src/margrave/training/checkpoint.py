"""A run's checkpoint: everything that training needs to go on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from margrave.checkpoints import atomic_write

FORMAT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint that replaces the former one only when it is whole and on disk."""
    with atomic_write(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, **state}, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Raises:
        ValueError: no such file, a damaged one, or one of another format.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no checkpoint to resume from; start without --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can fail with nearly anything, from EOFError to struct.error.
    except Exception as error:
        raise ValueError(f"{path}: damaged or no checkpoint of Margrave ({error})") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {version!r}, this Margrave reads {FORMAT_VERSION}; "
            "resume with the version of Margrave that wrote it"
        )
    return state


def remove_unfinished(folder: Path) -> None:
    """Delete what writes that were cut off left behind."""
    for name in ("checkpoint.pt", "model.safetensors", "config.yaml", "results.json"):
        for leftover in folder.glob(f".{name}.*"):
            leftover.unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """torch's random number generators, CPU and CUDA."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Let the generators go on where `random_state` found them."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
