"""SGD with momentum that touches only the rows that took part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def sgd_(
    parameter: Tensor,
    gradient: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """v ← momentum·v + (g + decay·w), w ← w − rate·v, in place; the gradient is used up."""
    gradient.add_(parameter, alpha=weight_decay)
    if momentum_buffer is not None:
        gradient = momentum_buffer.mul_(momentum).add_(gradient)
    parameter.add_(gradient, alpha=-lr)


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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        settings = {name: group[name] for name in ("lr", "momentum", "weight_decay")}
        state = self.state[parameter]
        if group["momentum"] and "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state.get("momentum_buffer")
        if not gradient.is_sparse:
            sgd_(parameter, gradient, buffer, **settings)
            return
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        touched, moved = parameter[rows], None if buffer is None else buffer[rows]
        sgd_(touched, gradient.values().clone(), moved, **settings)
        parameter.index_copy_(0, rows, touched)
        if buffer is not None and moved is not None:
            buffer.index_copy_(0, rows, moved)
