"""What is elementwise about a block of classes, compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from margrave.losses import Context, Loss


class FusedBlock:
    """What is elementwise about a block, compiled for one loss: a pass or two each.

    Args:
        loss: one that answers `negatives_and_slope`.
    """

    def __init__(self, loss: Loss) -> None:
        import torch._dynamo  # heavy, and not everybody compiles

        self.loss, self.works = loss, True
        # All losses share this class's code, for which dynamo would compile eight cases at most.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, 128)
        self._compiled: dict[str, Callable[..., Any]] = {
            "forward": torch.compile(self._forward, fullgraph=True),
            "backward": torch.compile(self._backward, fullgraph=True),
        }

    def forward(self, *given: Any) -> Tensor:
        """`_forward`, compiled."""
        return self._run("forward", self._forward, given)

    def backward(self, *given: Any) -> tuple[Tensor, Tensor]:
        """`_backward`, compiled."""
        return self._run("backward", self._backward, given)

    def _run(self, name: str, plain: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        try:
            return self._compiled[name](*given)
        # Compilers fail with nearly anything; what is wrong with the data fails again below.
        except Exception as error:
            if self._compiled[name] is plain:
                raise
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"{self.loss} cannot be compiled here ({reason}); going on without, somewhat "
                "slower: set the head's compiled to false to be spared this",
                stacklevel=2,
            )
            self._compiled[name], self.works = plain, False
            return plain(*given)

    def _forward(
        self, products: Tensor, factor: Tensor, column: Tensor, target: Tensor, context: Context,
        total: Tensor,
    ) -> Tensor:  # fmt: skip
        """(A,) the log-sum-exp with this block's negatives taken in; products become cosines."""
        cosines = products.mul_(factor) if self.loss.normalized else products.add_(factor)
        negatives = self.loss.negatives(cosines, target, context)
        terms = torch.exp(torch.add(-total[:, None], negatives, alpha=self.loss.scale))
        terms = torch.where(_columns(products) == column, 0, terms)
        return total + terms.sum(dim=1).log1p()

    def _backward(
        self, cosines: Tensor, factor: Tensor, column: Tensor, target: Tensor, context: Context,
        shift: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(A, K) gradient of the products, and (K,) Σ_i of it times the cosines, or of it alone."""
        analytic = self.loss.negatives_and_slope(cosines, target, context)
        assert analytic is not None
        negatives, slope = analytic
        gradient = torch.exp(torch.add(shift, negatives, alpha=self.loss.scale))
        if self.loss.normalized:
            gradient = gradient * factor
        if slope is not None:
            gradient = gradient * slope
        gradient = torch.where(_columns(cosines) == column, 0, gradient)
        along = gradient * cosines if self.loss.normalized else gradient
        return gradient, along.sum(dim=0)


def _columns(values: Tensor) -> Tensor:
    # Narrower than the usual 64 bits, which vectors of float32 could not be compared with.
    return torch.arange(values.shape[1], dtype=torch.int32, device=values.device)


@cache
def can_compile(device: str) -> bool:
    """Whether `torch.compile` finds what it needs here."""
    if device != "cpu":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


@lru_cache(maxsize=16)
def fused_block(loss: Loss) -> FusedBlock:
    """One compilation for every head of equal losses."""
    return FusedBlock(loss)
