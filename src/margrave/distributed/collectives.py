"""Thin wrappers of collectives; in a world of one process, they communicate nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from margrave.distributed.world import World


def all_reduce_sum(values: Tensor, world: World) -> Tensor:
    """Sum `values` over ranks, elementwise, without gradient; the input stays unchanged.

    >>> all_reduce_sum(torch.tensor(2.0), World())
    tensor(2.)
    """
    return _all_reduce(values, world, dist.ReduceOp.SUM)


def all_reduce_max(values: Tensor, world: World) -> Tensor:
    """The elementwise maximum of `values` over ranks, without gradient; the input stays unchanged.

    >>> all_reduce_max(torch.tensor(2.0), World())
    tensor(2.)
    """
    return _all_reduce(values, world, dist.ReduceOp.MAX)


def _all_reduce(values: Tensor, world: World, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if world.size == 1:
        return values.detach()
    result = values.detach().clone()
    dist.all_reduce(result, operation, group=world.group)
    return result


def all_reduce_log_sum_exp(values: Tensor, world: World) -> Tensor:
    """log Σ e^value, where the sum is over ranks; elementwise, without gradient.

    >>> all_reduce_log_sum_exp(torch.tensor([-float("inf")]), World())
    tensor([-inf])
    """
    if world.size == 1:
        return values.detach()
    maximum = all_reduce_max(values, world)
    # An infinite maximum is not subtracted, because ∞ − ∞ is NaN.
    shift = torch.where(maximum.isfinite(), maximum, 0)
    return all_reduce_sum((values - shift).exp(), world).log() + shift


def gather_sizes(size: int, world: World, device: torch.device) -> tuple[int, ...]:
    """Gather every rank's `size`, in rank order.

    >>> gather_sizes(3, World(), torch.device("cpu"))
    (3,)
    """
    if world.size == 1:
        return (size,)
    sizes = torch.zeros(world.size, dtype=torch.int64, device=device)
    sizes[world.rank] = size
    dist.all_reduce(sizes, group=world.group)
    return tuple(sizes.tolist())


def gather_rows(values: Tensor, sizes: Sequence[int], world: World) -> Tensor:
    """Concatenate the `values` of all ranks, without gradient; rank i has `sizes[i]` rows.

    >>> gather_rows(torch.tensor([[1], [2]]), [2], World()).tolist()
    [[1], [2]]
    """
    if world.size == 1:
        return values.detach()
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: len(values)] = values.detach()
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=world.group)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])


def gather_objects(value: Any, world: World) -> list[Any]:
    """Gather every rank's `value`, in rank order; a value can be any object that pickle supports.

    >>> gather_objects("here", World())
    ['here']
    """
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value, group=world.group)
    return values


def average_(tensors: Iterable[Tensor], world: World) -> None:
    """Replace each tensor with its mean over ranks, in place; the shapes must agree on all ranks.

    >>> values = torch.tensor([1.0, 2.0])
    >>> average_([values], World())
    >>> values
    tensor([1., 2.])
    """
    tensors = list(tensors)
    if world.size == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=world.group)
    flat /= world.size
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def rows_of_rank(sizes: Sequence[int], world: World) -> slice:
    """The slice of this rank's rows within the concatenation of all ranks' rows.

    >>> rows_of_rank([2, 5], World(rank=1, size=2))
    slice(2, 7, None)
    """
    start = sum(sizes[: world.rank])
    return slice(start, start + sizes[world.rank])
