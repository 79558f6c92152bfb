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

from margrave.heads.embeddings import scaled_inverse_length
from margrave.losses import Context, Loss

REGISTERS = 1024
"""Columns of a row that a group of a GPU's threads holds at a time; blocks are made of as many."""
MOST_FUSED_SCALE = 2.0**12
"""Of cosines times no more than this, rounding is too small to make an exponential overflow."""
OWN_KERNELS = 12
"""Shapes of a block that get a kernel of their own."""


class FusedBlock:
    """What is elementwise about a block, compiled for one loss: a pass or two each.

    Products (A, K) come as the matrix units leave them, x̂W_cᵀ in any precision, and are multiplied
    by 1/‖w‖ on the way (or a bias is added).

    Args:
        loss: one that answers `negatives_and_slope`.
        takes_maximum: shift the exponential by each row's maximum, which cannot overflow. A GPU
            does so for nothing. A processor shifts by the sum so far, which is faster; the caller
            looks whether it overflowed.
    """

    def __init__(self, loss: Loss, takes_maximum: bool) -> None:
        self.loss, self.takes_maximum = loss, takes_maximum
        self._forward_compiled = Compiled(self._forward, str(loss))
        self._backward_compiled = Compiled(self._backward, str(loss))

    @property
    def works(self) -> bool:
        """Whether the compiler took it so far."""
        return self._forward_compiled.works and self._backward_compiled.works

    def forward(self, *given: Any) -> Tensor:
        """`_forward`, compiled."""
        return self._forward_compiled(*given)

    def backward(self, *given: Any) -> None:
        """`_backward`, compiled."""
        self._backward_compiled(*given)

    def _forward(
        self, products: Tensor, factor: Tensor, column: Tensor, target: Tensor, context: Context,
        total: Tensor,
    ) -> Tensor:  # fmt: skip
        """(A,) the log-sum-exp with this block's negatives added."""
        cosines = self._cosines(products, factor, total.dtype)
        negatives = self.loss.negatives(cosines, target, context)
        is_target = _columns(products) == column
        if self.takes_maximum:
            logits = torch.where(is_target, -torch.inf, self.loss.scale * negatives)
            return torch.logaddexp(total, _log_sum_exp(logits))
        terms = torch.exp(torch.add(-total[:, None], negatives, alpha=self.loss.scale))
        return total + torch.where(is_target, 0, terms).sum(dim=1).log1p()

    def _backward(
        self, products: Tensor, factor: Tensor, column: Tensor, target: Tensor, context: Context,
        total: Tensor,
    ) -> None:  # fmt: skip
        """Products become p · dN/dcosθ · dcosθ/dproduct, and 0 for the target."""
        cosines = self._cosines(products, factor, total.dtype)
        analytic = self.loss.negatives_and_slope(cosines, target, context)
        assert analytic is not None
        negatives, slope = analytic
        shifted = torch.add(-total[:, None], negatives, alpha=self.loss.scale)
        if not self.loss.normalized or self.loss.scale > MOST_FUSED_SCALE:
            # Rounding of huge products alone brings them above their sum.
            shifted = shifted.clamp_max(0)
        gradient = torch.exp(shifted)
        if self.loss.normalized:
            gradient = gradient * factor
        if slope is not None:
            gradient = gradient * slope
        products.copy_(torch.where(_columns(products) == column, 0, gradient))

    def _cosines(self, products: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        products = products.to(dtype)
        return products * factor if self.loss.normalized else products + factor


def _log_sum_exp(logits: Tensor) -> Tensor:
    """(A,) log Σ_j e^{logits_j}, each part of a row read once: its maximum stays in registers."""
    if logits.shape[1] % REGISTERS == 0:
        logits = torch.logsumexp(logits.unflatten(1, (-1, REGISTERS)), dim=2)
    return torch.logsumexp(logits, dim=1)


def cast_and_measure(centers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(K, D) class centers in a product's dtype, and (K,) 1/‖w‖."""
    return centers.to(dtype), scaled_inverse_length(centers)


def project_(rows: Tensor, centers: Tensor, inverse: Tensor) -> None:
    """Take each row's part along its class center away, in place: d − (d·ŵ)ŵ."""
    unit = centers.to(inverse.dtype) * inverse[:, None]
    across = rows.to(inverse.dtype)
    across = across - unit * (across * unit).sum(dim=1, keepdim=True)
    rows.copy_(across)


class Compiled:
    """A function of blocks, compiled for each of the first few shapes and then for any.

    A kernel for any shape divides by the number of columns to find out where it is, which on a GPU
    takes several times as long as all the rest. A training has two shapes, a whole block and the
    last one; batches of ever other sizes would otherwise compile for ever.

    Args:
        function: of which the first tensor's shape decides.
        name: for the warning where it cannot be compiled and runs as it is.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        import torch._dynamo  # heavy, and not everybody compiles

        # All losses share this module's code, for which dynamo would compile eight cases at most.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, 256)
        self.works = True
        self._function, self._name = function, name
        self._shapes: set[torch.Size] = set()

    def __call__(self, *given: Any) -> Any:
        if not self.works:
            return self._function(*given)
        shape = given[0].shape
        if len(self._shapes) < OWN_KERNELS:
            self._shapes.add(shape)
        try:
            return self._kernel(given[0].device.type, shape not in self._shapes)(*given)
        except torch.OutOfMemoryError:
            raise
        # Compilers fail with nearly anything; what is wrong with the data fails again below.
        except Exception as error:
            # The first line may say no more than which part of the compiler it was.
            reason = " ".join(str(error).split("\n", 2)[:2]).strip()
            warnings.warn(
                f"{self._name} cannot be compiled here ({reason}); running without, somewhat "
                "slower: set the head's compiled to false to silence this warning",
                stacklevel=2,
            )
            self.works = False
            return self._function(*given)

    @cache  # noqa: B019 - as long-lived as the process
    def _kernel(self, device: str, any_shape: bool) -> Callable[..., Any]:
        # The compiler keeps its C++ between processes without regard to the width of vectors that
        # it was written for (torch 2.13): under another ATEN_CPU_CAPABILITY, or from a folder
        # shared with another machine, it writes beyond its arrays. Options are regarded.
        options: Any = {"cpp.simdlen": _vector_bits()} if device == "cpu" else None
        return torch.compile(self._function, fullgraph=True, dynamic=any_shape, options=options)


@cache
def _vector_bits() -> int:
    from torch._inductor import cpu_vec_isa

    return cpu_vec_isa.pick_vec_isa().bit_width()


@cache
def compiled(function: Callable[..., Any]) -> Compiled:
    """A function of this module that knows no loss, compiled once for all heads."""
    return Compiled(function, function.__name__)


def _columns(values: Tensor) -> Tensor:
    # Narrower than the usual 64 bits, which vectors of float32 could not be compared with.
    return torch.arange(values.shape[1], dtype=torch.int32, device=values.device)


@cache
def can_compile(device: str) -> bool:
    """Whether `torch.compile` finds what it needs here."""
    if device == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return device == "cuda" and importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=32)
def fused_block(loss: Loss, device: str) -> FusedBlock:
    """One compilation for every head of equal losses."""
    return FusedBlock(loss, takes_maximum=device != "cpu")
