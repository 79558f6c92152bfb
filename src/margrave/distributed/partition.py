"""Which classes a rank owns."""

from __future__ import annotations

from margrave.distributed.world import World


def owned_classes(num_classes: int, world: World) -> range:
    """A contiguous block of classes: ⌈C / ranks⌉ each, the last ranks fewer.

    The split is that of `torch.chunk` and of DTensor's `Shard(0)`, so that checkpoints know it.

    >>> [owned_classes(10, World(rank, 4)) for rank in range(4)]
    [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
    """
    each = -(-num_classes // world.size)
    start = min(world.rank * each, num_classes)
    return range(start, min(start + each, num_classes))
