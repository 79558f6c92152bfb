"""The elementwise operations on a block of classes, compiled."""

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

REDUCTION_COLUMNS = 1024
"""Columns that a GPU thread block keeps in registers; block sizes are multiples of it."""
MAX_FUSED_SCALE = 2.0**12
"""Up to this scale, the rounding of scaled cosines is too small to overflow an exponential."""
MAX_STATIC_SHAPES = 12
"""Number of block shapes that are each compiled to a specialized kernel."""


class FusedBlock:
    """The elementwise operations on a block, compiled for one loss to one or two passes each.

    The inputs are the raw products x̂W_cᵀ (A, K) in any precision; scaling by 1/‖w‖ (or adding a
    bias) is part of the pass.

    Args:
        loss: a loss that implements `negatives_and_slope`.
        subtract_max: subtract each row's maximum before the exponential, which prevents overflow
            and is free on a GPU. On a CPU it is faster to subtract the running log-sum-exp; the
            caller then checks for overflow.
    """

    def __init__(self, loss: Loss, subtract_max: bool) -> None:
        self.loss, self.subtract_max = loss, subtract_max
        self._forward_compiled = Compiled(self._forward, str(loss))
        self._backward_compiled = Compiled(self._backward, str(loss))

    @property
    def works(self) -> bool:
        """Whether compilation has succeeded so far."""
        return self._forward_compiled.works and self._backward_compiled.works

    def forward(self, *arguments: Any) -> Tensor:
        """Run `_forward`, compiled."""
        return self._forward_compiled(*arguments)

    def backward(self, *arguments: Any) -> None:
        """Run `_backward`, compiled."""
        self._backward_compiled(*arguments)

    def _forward(
        self, products: Tensor, factor: Tensor, column: Tensor, target: Tensor, context: Context,
        total: Tensor,
    ) -> Tensor:  # fmt: skip
        """(A,) the running log-sum-exp including this block's negatives."""
        cosines = self._cosines(products, factor, total.dtype)
        negatives = self.loss.modify_negatives(cosines, target, context)
        is_target = _columns(products) == column
        if self.subtract_max:
            logits = torch.where(is_target, -torch.inf, self.loss.scale * negatives)
            return torch.logaddexp(total, _log_sum_exp(logits))
        terms = torch.exp(torch.add(-total[:, None], negatives, alpha=self.loss.scale))
        return total + torch.where(is_target, 0, terms).sum(dim=1).log1p()

    def _backward(
        self, products: Tensor, factor: Tensor, column: Tensor, target: Tensor, context: Context,
        total: Tensor,
    ) -> None:  # fmt: skip
        """Replace the products by p · dN/dcosθ · dcosθ/dproduct; 0 for the target."""
        cosines = self._cosines(products, factor, total.dtype)
        analytic = self.loss.modify_negatives_and_slope(cosines, target, context)
        assert analytic is not None
        negatives, slope = analytic
        shifted = torch.add(-total[:, None], negatives, alpha=self.loss.scale)
        if not self.loss.normalized or self.loss.scale > MAX_FUSED_SCALE:
            # A term can exceed the log-sum-exp only by rounding of huge products.
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
    """(A,) log Σ_j e^{logits_j}; reads each row once, in parts that fit into registers."""
    if logits.shape[1] % REDUCTION_COLUMNS == 0:
        logits = torch.logsumexp(logits.unflatten(1, (-1, REDUCTION_COLUMNS)), dim=2)
    return torch.logsumexp(logits, dim=1)


def cast_and_invert_norm(centers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(K, D) class centers in the products' dtype, and (K,) 1/‖w‖."""
    return centers.to(dtype), scaled_inverse_length(centers)


def project_(rows: Tensor, centers: Tensor, inverse: Tensor) -> None:
    """Remove each row's component along its class center, in place: d − (d·ŵ)ŵ."""
    unit = centers.to(inverse.dtype) * inverse[:, None]
    orthogonal = rows.to(inverse.dtype)
    orthogonal = orthogonal - unit * (orthogonal * unit).sum(dim=1, keepdim=True)
    rows.copy_(orthogonal)


class Compiled:
    """A function compiled for each of the first few block shapes, then once for any shape.

    A kernel for any shape computes its column by divisions, which on a GPU takes several times as
    long as everything else. Training has only two shapes, a full block and the last one. The limit
    keeps batches of varying sizes from compiling forever.

    Args:
        function: the function; the shape of its first argument selects the kernel.
        name: its name for the warning if it cannot be compiled and runs uncompiled.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        import torch._dynamo  # slow to import and often not needed

        # All losses share this module's code, which dynamo would compile at most eight times.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, 256)
        self.works = True
        self._function, self._name = function, name
        self._shapes: set[torch.Size] = set()

    def __call__(self, *arguments: Any) -> Any:
        if not self.works:
            return self._function(*arguments)
        shape = arguments[0].shape
        if len(self._shapes) < MAX_STATIC_SHAPES:
            self._shapes.add(shape)
        try:
            return self._kernel(arguments[0].device.type, shape not in self._shapes)(*arguments)
        except torch.OutOfMemoryError:
            raise
        # Compilers can raise nearly any error; an error in the data is raised again below.
        except Exception as error:
            # The first line may only name the failing part of the compiler.
            reason = " ".join(str(error).split("\n", 2)[:2]).strip()
            warnings.warn(
                f"{self._name} cannot be compiled here ({reason}) and runs uncompiled, somewhat "
                "slower; set the head's compiled to false to silence this warning",
                stacklevel=2,
            )
            self.works = False
            return self._function(*arguments)

    @cache  # noqa: B019 - lives as long as the process
    def _kernel(self, device: str, any_shape: bool) -> Callable[..., Any]:
        # The compiler caches its C++ across processes without the vector width in the key (torch
        # 2.13). With another ATEN_CPU_CAPABILITY, or with a cache folder shared by machines, the
        # code would write past its arrays. Options are part of the key.
        options: Any = {"cpp.simdlen": _vector_bits()} if device == "cpu" else None
        return torch.compile(self._function, fullgraph=True, dynamic=any_shape, options=options)


@cache
def _vector_bits() -> int:
    from torch._inductor import cpu_vec_isa

    return cpu_vec_isa.pick_vec_isa().bit_width()


@cache
def compiled(function: Callable[..., Any]) -> Compiled:
    """A function that does not depend on the loss, compiled once for all heads."""
    return Compiled(function, function.__name__)


def _columns(values: Tensor) -> Tensor:
    # 32 bits, since 64-bit columns would prevent vectorized comparison with float32 data.
    return torch.arange(values.shape[1], dtype=torch.int32, device=values.device)


@cache
def can_compile(device: str) -> bool:
    """Whether `torch.compile` has a compiler on this machine."""
    if device == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return device == "cuda" and importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=32)
def fused_block(loss: Loss, device: str) -> FusedBlock:
    """The compiled block operations, shared by all heads with equal losses."""
    return FusedBlock(loss, subtract_max=device != "cpu")
