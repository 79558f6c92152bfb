"""Run a function on real gloo processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing


def _start(rank: int, size: int, folder: str, function: Callable[..., Any], given: tuple) -> None:
    torch.set_num_threads(1)
    # As torchrun tells its processes.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
    )
    try:
        torch.save(function(rank, *given), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_ranks(size: int, function: Callable[..., Any], *given: Any) -> list[Any]:
    """What ``function(rank, *given)`` returns on each of `size` processes."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_start, args=(size, folder, function, given), nprocs=size)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(size)]
