"""The partition of the classes into one shard per rank."""

from __future__ import annotations

from margrave.distributed.world import World


def owned_classes(num_classes: int, world: World) -> range:
    """This rank's contiguous block of ⌈C / ranks⌉ classes, fewer on the last ranks.

    `torch.chunk` and DTensor's `Shard(0)`, which checkpoints use, split in the same way.

    >>> [owned_classes(10, World(rank, 4)) for rank in range(4)]
    [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    """
    shard_size = -(-num_classes // world.size)
    start = min(world.rank * shard_size, num_classes)
    return range(start, min(start + shard_size, num_classes))
