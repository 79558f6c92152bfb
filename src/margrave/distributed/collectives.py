"""Tiny named collectives that cost nothing in a world of one."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from margrave.distributed.world import World


def all_reduce_sum(values: Tensor, world: World) -> Tensor:
    """The sum of every rank's `values`, on every rank; the input is left as it is. No gradient.

    >>> import torch
    >>> all_reduce_sum(torch.tensor(2.0), World())
    tensor(2.)
    """
    if world.size == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total, group=world.group)
    return total
