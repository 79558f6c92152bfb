"""SGD with momentum that updates only the rows with a gradient."""

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
    """One step of SGD in place: v ← momentum·v + (g + weight_decay·w), w ← w − lr·v.

    Overwrites the gradients, so that no tensor of a parameter's size is allocated. Without
    momentum, pass no buffers.
    """
    if weight_decay:
        torch._foreach_add_(gradients, parameters, alpha=weight_decay)
    if momentum_buffers:
        torch._foreach_mul_(momentum_buffers, momentum)
        torch._foreach_add_(momentum_buffers, gradients)
        gradients = momentum_buffers
    torch._foreach_add_(parameters, gradients, alpha=-lr)


class RowwiseSGD(torch.optim.Optimizer):
    """SGD with momentum and weight decay that updates only the rows in a sparse gradient.

    Rows in the gradient are updated as by `torch.optim.SGD`: v ← momentum·v + (g + weight_decay·w),
    w ← w − lr·v. Other rows keep their weights and momentum, whereas `torch.optim.SGD` would decay
    both. If a fraction r of the classes is sampled, weight decay and momentum therefore act on a
    row in only a fraction r of the steps.

    A dense gradient updates all rows. The step overwrites the gradient, to avoid a second tensor of
    that size.

    Args:
        parameters: as in `torch.optim.SGD`.
        lr: learning rate, at least 0.
        momentum: in [0, 1).
        weight_decay: at least 0.

    Source (momentum under class sampling): Partial FC, arXiv 2203.15565, section 4.

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
        if momentum >= 1:
            raise ValueError(f"momentum = {momentum} must be below 1")
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


def require_rowwise_optimizer(weight: nn.Parameter) -> None:
    """Make optimizers that cannot apply the weight's sparse gradient fail with a helpful error."""
    weight._is_sampled = True  # type: ignore[attr-defined]
    _register_optimizer_check()


@cache
def _register_optimizer_check() -> None:
    """Make all optimizers run the check before each step; the cache prevents a second hook."""
    register_optimizer_step_pre_hook(_check_optimizer)


def _check_optimizer(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if isinstance(optimizer, RowwiseSGD | torch.optim.SparseAdam):
        return
    for group in optimizer.param_groups:
        # torch's SGD accepts sparse gradients only without weight decay.
        accepts_sparse = isinstance(optimizer, torch.optim.SGD) and not group["weight_decay"]
        for parameter in () if accepts_sparse else group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse and hasattr(parameter, "_is_sampled"):
                raise ValueError(
                    f"{type(optimizer).__name__} cannot apply the sparse gradient of a head with "
                    "sample_rate; pass the head's parameters to margrave.heads.RowwiseSGD"
                )


@torch.no_grad()
def _update_rows(
    parameter: Tensor, gradient: Tensor, buffer: Tensor | None, settings: Mapping[str, float]
) -> None:
    """Apply a sparse gradient to the rows that it contains; `buffer` is the momentum."""
    rows = gradient.indices()[0]
    updated = parameter[rows]
    momentum_rows = [] if buffer is None else [buffer[rows]]
    sgd_([updated], [gradient.values().clone()], momentum_rows, **settings)
    parameter.index_copy_(0, rows, updated)
    if buffer is not None:
        buffer.index_copy_(0, rows, momentum_rows[0])
