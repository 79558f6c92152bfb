"""The only place that touches torch.distributed."""

from margrave.distributed.collectives import all_reduce_sum
from margrave.distributed.world import World, current_world

__all__ = ["World", "all_reduce_sum", "current_world"]
