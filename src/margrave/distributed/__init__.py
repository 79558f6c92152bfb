"""Processes, ranks and collectives: the only package that uses torch.distributed."""

from margrave.distributed.collectives import (
    all_reduce_log_sum_exp,
    all_reduce_max,
    all_reduce_sum,
    average_,
    gather_objects,
    gather_rows,
    gather_sizes,
    rows_of_rank,
)
from margrave.distributed.launch import (
    Launch,
    RankError,
    as_rank_error,
    current_launch,
    end_with_launcher,
    end_with_parent,
    has_launcher,
    launch,
    record_failure,
)
from margrave.distributed.partition import owned_classes
from margrave.distributed.sharding import full_tensor, shard_parameters
from margrave.distributed.watch import RankWatch, joined_world
from margrave.distributed.world import World, current_world

__all__ = [
    "Launch",
    "RankError",
    "RankWatch",
    "World",
    "all_reduce_log_sum_exp",
    "all_reduce_max",
    "all_reduce_sum",
    "as_rank_error",
    "average_",
    "current_launch",
    "current_world",
    "end_with_launcher",
    "end_with_parent",
    "full_tensor",
    "gather_objects",
    "gather_rows",
    "gather_sizes",
    "has_launcher",
    "joined_world",
    "launch",
    "owned_classes",
    "record_failure",
    "rows_of_rank",
    "shard_parameters",
]
