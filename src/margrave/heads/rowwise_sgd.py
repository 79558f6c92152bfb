"""SGD with momentum that touches only the rows that took part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


@torch.no_grad()
def sgd_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """v ← momentum·v + (g + decay·w), w ← w − rate·v, in place; gradients are used up.

    Without momentum there are no buffers. Nothing of a parameter's size is allocated.
    """
    if weight_decay:
        torch._foreach_add_(gradients, parameters, alpha=weight_decay)
    if momentum_buffers:
        torch._foreach_mul_(momentum_buffers, momentum)
        torch._foreach_add_(momentum_buffers, gradients)
        gradients = momentum_buffers
    torch._foreach_add_(parameters, gradients, alpha=-lr)


class RowwiseSGD(torch.optim.Optimizer):
    """SGD with momentum and weight decay; of a sparse gradient only the rows it holds.

    For a touched row: v ← momentum·v + (g + decay·w), w ← w − rate·v, which is `torch.optim.SGD`'s
    rule, and for a dense gradient the whole of it. An untouched row keeps weight and momentum bit
    for bit, where the dense rule would decay both: with classes sampled at rate r a row sees decay
    and momentum 1/r times as seldom, each time with a gradient.

    A dense gradient is changed in place, so that no second tensor of its size is needed.

    Args:
        parameters: as in `torch.optim.SGD`.
        lr: learning rate, above 0.
        momentum: in [0, 1).
        weight_decay: at least 0.

    Source: momentum of class centres under sampling as in Partial FC, arXiv 2203.15565, section 4.

    >>> weight = torch.nn.Parameter(torch.ones(3, 2))
    >>> weight.grad = torch.sparse_coo_tensor([[1]], [[1.0, 1.0]], (3, 2), check_invariants=True)
    >>> RowwiseSGD([weight], lr=0.5).step()
    >>> weight.tolist()
    [[1.0, 1.0], [0.5, 0.5], [1.0, 1.0]]
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} = {value} must be at least 0")
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(parameters, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            settings = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
            dense: list[tuple[Tensor, Tensor, Tensor | None]] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["momentum"] and "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = self.state[parameter].get("momentum_buffer")
                if parameter.grad.is_sparse:
                    _update_rows(parameter, parameter.grad.coalesce(), buffer, settings)
                else:
                    dense.append((parameter, parameter.grad, buffer))
            if dense:
                parameters, gradients, buffers = map(list, zip(*dense, strict=True))
                sgd_(parameters, gradients, [b for b in buffers if b is not None], **settings)
        return loss


def refuse_other_optimizers(weight: nn.Parameter) -> None:
    """Have optimisers that cannot take a sampled weight's sparse gradient say so in our words."""
    weight._is_sampled = True  # type: ignore[attr-defined]
    _watch_optimizers()


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_pre_hook(_check_optimizer)


def _check_optimizer(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if isinstance(optimizer, RowwiseSGD | torch.optim.SparseAdam):
        return
    for group in optimizer.param_groups:
        # torch's SGD takes sparse gradients where nothing decays.
        plain = isinstance(optimizer, torch.optim.SGD) and not group["weight_decay"]
        for parameter in () if plain else group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse and hasattr(parameter, "_is_sampled"):
                raise ValueError(
                    f"{type(optimizer).__name__} cannot take the sparse gradient of a head with "
                    "sample_rate; give the head's parameters to margrave.heads.RowwiseSGD"
                )


@torch.no_grad()
def _update_rows(
    parameter: Tensor, gradient: Tensor, buffer: Tensor | None, settings: Mapping[str, float]
) -> None:
    rows = gradient.indices()[0]
    touched, moved = parameter[rows], [] if buffer is None else [buffer[rows]]
    sgd_([touched], [gradient.values().clone()], moved, **settings)
    parameter.index_copy_(0, rows, touched)
    if buffer is not None:
        buffer.index_copy_(0, rows, moved[0])
