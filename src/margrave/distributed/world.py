"""The rank of this process and the number of ranks; one process needs no process group."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: this process's rank over all machines, 0 ≤ rank < size.
        size: number of processes.
        group: the process group; None is the default group.

    >>> World().size
    1
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None


def current_world() -> World:
    """The world of the default process group; if there is none, a world of one process."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()
