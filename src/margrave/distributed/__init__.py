"""The only place that touches torch.distributed."""

from margrave.distributed.collectives import (
    all_reduce_max,
    all_reduce_sum,
    gather_rows,
    log_sum_exp_of_ranks,
    own_rows,
    sizes_of_ranks,
)
from margrave.distributed.partition import owned_classes
from margrave.distributed.world import World, current_world

__all__ = [
    "World",
    "all_reduce_max",
    "all_reduce_sum",
    "current_world",
    "gather_rows",
    "log_sum_exp_of_ranks",
    "own_rows",
    "owned_classes",
    "sizes_of_ranks",
]
