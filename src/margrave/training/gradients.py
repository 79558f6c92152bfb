"""Measures and clips the joint norm of all gradients, dense and sparse."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from margrave.distributed import World, all_reduce_sum, full_tensor


def coalesced_gradient(parameter: nn.Parameter) -> Tensor | None:
    """A parameter's dense gradient, or the stored rows of its sparse gradient; None if it has none.

    A sparse gradient is coalesced in place.

    >>> weight = nn.Parameter(torch.ones(3))
    >>> coalesced_gradient(weight) is None
    True
    """
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        return gradient
    # An accumulated sparse gradient can hold the same row several times.
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter],
    limit: float | None,
    *,
    replicated: Iterable[nn.Parameter] = (),
    row_sharded: Iterable[nn.Parameter] = (),
    world: World | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Scale all gradients down if their joint norm exceeds `limit`; return that norm, a () tensor.

    The host does not wait for the device, so infinite or NaN gradients raise no error; they make
    the returned norm infinite or NaN.

    Args:
        parameters: the network's parameters, replicated by DDP or sharded by FSDP.
        limit: the maximum norm; None only measures the norm.
        replicated: other parameters that have the same gradient on every rank.
        row_sharded: parameters of which each rank has different rows, such as the class centers.
        world: the ranks that hold the rows of `row_sharded`; None for one rank.
        scale: the loss scale; gradients and norm are divided by it.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], 1.0), weight.grad
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    gradients, shards = _gradients(parameters), _gradients(row_sharded)
    copies = _gradients(replicated)
    total = full_tensor(nn.utils.get_total_norm(gradients)) / scale
    if copies:
        total = torch.hypot(total, nn.utils.get_total_norm(copies) / scale)
    if shards or (world is not None and world.size > 1):
        shard_norm = nn.utils.get_total_norm(shards) / scale if shards else torch.zeros_like(total)
        shard_norm = all_reduce_sum(shard_norm.square(), world or World()).sqrt()
        total = torch.hypot(total, shard_norm)
    if limit is None and scale == 1:
        return total
    factor = torch.full_like(total, 1 / scale)
    if limit is not None:
        # 1e-6 as in torch's clip_grad_norm_.
        factor = factor * (limit / (total + 1e-6)).clamp(max=1.0)
    # Separate calls, because FSDP's gradients are DTensors, which cannot be mixed with tensors.
    for values in filter(None, (gradients, copies, shards)):
        torch._foreach_mul_(values, factor)
    return total


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [values for values in map(coalesced_gradient, parameters) if values is not None]
