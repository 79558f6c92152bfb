"""Gradients as a whole, dense and sparse alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from margrave.distributed import World, all_reduce_sum, whole


def gradient_values(parameter: nn.Parameter) -> Tensor | None:
    """The gradient's numbers: all of a dense one, the rows present of a sparse one.

    >>> weight = nn.Parameter(torch.ones(3))
    >>> gradient_values(weight) is None
    True
    """
    gradient = parameter.grad
    if gradient is None or not gradient.is_sparse:
        return gradient
    # A sparse gradient that was accumulated holds a row more than once.
    parameter.grad = gradient.coalesce()
    return parameter.grad._values()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter],
    limit: float | None,
    *,
    split: Iterable[nn.Parameter] = (),
    world: World | None = None,
    scale: float = 1.0,
) -> Tensor:
    """The norm () of all gradients together, which are scaled down to `limit` if it is more.

    The host does not wait for it: what is not finite stays so.

    Args:
        parameters: whose gradient is the same on every rank, or FSDP's.
        limit: None to measure only.
        split: of which each rank has a part of its own.
        world: the ranks.
        scale: what the loss was multiplied by, which is taken out of gradients and norm.

    >>> weight = nn.Parameter(torch.zeros(2))
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> clip_gradients([weight], 1.0), weight.grad
    (tensor(5.), tensor([0.6000, 0.8000]))
    """
    same, parts = _values(parameters), _values(split)
    total = whole(nn.utils.get_total_norm(same)) / scale
    if parts or (world is not None and world.size > 1):
        of_parts = nn.utils.get_total_norm(parts) / scale if parts else torch.zeros_like(total)
        of_parts = all_reduce_sum(of_parts.square(), world or World()).sqrt()
        total = torch.hypot(total, of_parts)
    if limit is None and scale == 1:
        return total
    factor = torch.full_like(total, 1 / scale)
    if limit is not None:
        factor = factor * (limit / (total + 1e-6)).clamp(max=1.0)
    # Not in one call: FSDP's gradients are of another sort.
    for values in filter(None, (same, parts)):
        torch._foreach_mul_(values, factor)
    return total


def _values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    return [found for found in map(gradient_values, parameters) if found is not None]
