"""Which process this is, as a value. A world of one needs no process group."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


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
