"""Which process this is, as a value. A world of one needs no process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from margrave.distributed.launch import current_launch

LONGEST_WAIT = timedelta(days=30)
"""For the slowest of the processes that share something out, which may take days."""


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: this process, 0 ≤ rank < size, counted over all machines.
        size: how many processes there are.
        group: their process group; None is the default one.

    >>> World().size
    1
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None


def current_world() -> World:
    """The world of the default process group, or a world of one where none was started."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def joined_world() -> Iterator[World]:
    """The world of the processes that a launcher started, or of this one where none did.

    >>> with joined_world() as world:
    ...     world.size
    1
    """
    if current_launch().size == 1:
        yield World()
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield current_world()
    finally:
        dist.destroy_process_group()
