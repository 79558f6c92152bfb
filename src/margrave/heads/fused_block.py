"""Compiled elementwise operations on a block of classes.

Shapes: A samples of all ranks, K classes in the block, D features. The shapes of products and
centers are those for one center per class; with M centers, they have K·M columns or rows.
"""

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

from margrave.heads.centers import gradient_of_all_cosines, nearest_centers
from margrave.heads.embeddings import overflow_safe_inverse_length
from margrave.heads.reducers import MAX_FUSED_SCALE, sigmoid_sums
from margrave.losses import Context, Loss

REDUCTION_COLUMNS = 1024
"""Columns that one GPU thread block can reduce in registers."""
MAX_STATIC_SHAPES = 12
"""Number of block shapes with a specialized kernel; all others share one kernel."""


class FusedBlock:
    """A loss's elementwise operations on a block, compiled to read the block only once or twice.

    `forward` and `backward` start from the raw products x̂W_cᵀ instead of cosines, so that a block
    needs no separate pass for scaling by 1/‖w‖ (or adding the bias).

    Args:
        loss: a loss whose `modify_negatives_and_slope` does not return None.
        subtract_max: whether to subtract each row's maximum before the exponential, which prevents
            overflow and is free on a GPU. On a CPU it is faster to subtract the running log-sum-exp
            instead; the caller must then check for overflow.
        centers_per_class: number of centers per class; the class's cosine is the largest of theirs.

    Attributes:
        subtract_running: whether to subtract the log-sum-exp of the previous blocks.
    """

    def __init__(self, loss: Loss, subtract_max: bool, centers_per_class: int = 1) -> None:
        self.loss, self.subtract_max = loss, subtract_max
        self.centers_per_class = centers_per_class
        self.subtract_running = not subtract_max
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
        self, products: Tensor, inverse_or_bias: Tensor, target_column: Tensor,
        target_cosine: Tensor, context: Context, state: Tensor,
        sigmoid_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Add a block's negatives to the reducer's state.

        Args:
            products: (A, K) x̂W_cᵀ, in any precision.
            inverse_or_bias: (K,) 1/‖w‖, or the bias for a loss of inner products.
            target_column: (A, 1) the target's column in the block; outside [0, K) if the block
                lacks the target.
            target_cosine: (A,) cosθ_y.
            context: the loss's context for the A samples.
            state: (A, …) the reducer's state after the previous blocks, see
                `margrave.heads.reducers`.
            sigmoid_bias: (1,) the learned bias of a loss with a sigmoid per class, or None.

        Returns:
            (A, …) the state including this block.
        """
        cosines, _ = self._cosines(products, inverse_or_bias, state.dtype)
        negatives = self.loss.modify_negatives(cosines, target_cosine, context)
        return self._add(state, negatives, _columns(cosines) == target_column, sigmoid_bias)

    def _backward(
        self, products: Tensor, inverse_or_bias: Tensor, target_column: Tensor,
        target_cosine: Tensor, context: Context, state: Tensor,
        sigmoid_bias: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Overwrite the products with ∂R/∂(s·N) · dN/dcosθ · dcosθ/dproduct; 0 for the target.

        Args:
            state: (A, …) the reducer's final state, over all classes but the target.
            *: see `_forward`.
        """
        cosines, nearest = self._cosines(products, inverse_or_bias, state.dtype)
        analytic = self.loss.modify_negatives_and_slope(cosines, target_cosine, context)
        assert analytic is not None
        negatives, slope = analytic
        gradient = self._slope(state, negatives, sigmoid_bias)
        if slope is not None:
            gradient = gradient * slope
        gradient = torch.where(_columns(gradient) == target_column, 0, gradient)
        gradient = gradient_of_all_cosines(gradient, nearest, self.centers_per_class)
        products.copy_(gradient * inverse_or_bias if self.loss.normalized else gradient)

    def _add(
        self, state: Tensor, negatives: Tensor, is_target: Tensor, sigmoid_bias: Tensor | None
    ) -> Tensor:
        """(A,) the log-sum-exp over the previous blocks and this one."""
        del sigmoid_bias
        if self.subtract_max:
            logits = torch.where(is_target, -torch.inf, self.loss.scale * negatives)
            return torch.logaddexp(state, _log_sum_exp(logits))
        # log(e^state + Σ e^{s·N}) = state + log(1 + Σ e^{s·N − state})
        terms = torch.exp(torch.add(-state[:, None], negatives, alpha=self.loss.scale))
        return state + torch.where(is_target, 0, terms).sum(dim=1).log1p()

    def _slope(self, state: Tensor, negatives: Tensor, sigmoid_bias: Tensor | None) -> Tensor:
        """(A, K) ∂R/∂(s·N) = e^{s·N − R}."""
        del sigmoid_bias
        shifted = torch.add(-state[:, None], negatives, alpha=self.loss.scale)
        if not self.loss.normalized or self.loss.scale > MAX_FUSED_SCALE:
            # Exact arithmetic gives s·N ≤ R, but rounding of huge products can make s·N larger.
            shifted = shifted.clamp_max(0)
        return torch.exp(shifted)

    def _cosines(
        self, products: Tensor, inverse_or_bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """(A, K) each class's cosine; (A, K) index of its nearest center, or None if M = 1.

        For a loss of inner products, products plus bias take the place of the cosines.
        """
        products = products.to(dtype)
        if not self.loss.normalized:
            return products + inverse_or_bias, None
        return nearest_centers(products * inverse_or_bias, self.centers_per_class)


class FusedSigmoidBlock(FusedBlock):
    """The operations of a loss with a sigmoid per class, which cannot overflow."""

    def __init__(self, loss: Loss, centers_per_class: int = 1) -> None:
        super().__init__(loss, subtract_max=False, centers_per_class=centers_per_class)
        self.subtract_running = False

    def _add(
        self, state: Tensor, negatives: Tensor, is_target: Tensor, sigmoid_bias: Tensor | None
    ) -> Tensor:
        logits = self._logits(negatives, sigmoid_bias)
        return state + sigmoid_sums(torch.where(is_target, -torch.inf, logits))

    def _slope(self, state: Tensor, negatives: Tensor, sigmoid_bias: Tensor | None) -> Tensor:
        del state
        return torch.sigmoid(self._logits(negatives, sigmoid_bias))

    def _logits(self, negatives: Tensor, sigmoid_bias: Tensor | None) -> Tensor:
        assert sigmoid_bias is not None
        return torch.add(sigmoid_bias, negatives, alpha=self.loss.scale)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """(A,) log Σ_j e^{logits_j}; if REDUCTION_COLUMNS divides K, a GPU reads each value once."""
    if logits.shape[1] % REDUCTION_COLUMNS == 0:
        logits = torch.logsumexp(logits.unflatten(1, (-1, REDUCTION_COLUMNS)), dim=2)
    return torch.logsumexp(logits, dim=1)


def cast_and_invert_norm(centers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(K, D) class centers in the products' dtype, and (K,) 1/‖w‖."""
    return centers.to(dtype), overflow_safe_inverse_length(centers)


def project_(grad_centers: Tensor, centers: Tensor, inverse_norm: Tensor) -> None:
    """Remove each gradient's component along its class center, in place: d − (d·ŵ)ŵ.

    Args:
        grad_centers: (K, D) d, the gradient of each center before the projection.
        centers: (K, D) class centers w.
        inverse_norm: (K,) 1/‖w‖.
    """
    unit = centers.to(inverse_norm.dtype) * inverse_norm[:, None]
    gradient = grad_centers.to(inverse_norm.dtype)
    grad_centers.copy_(gradient - unit * (gradient * unit).sum(dim=1, keepdim=True))


class Compiled:
    """A function compiled for each of the first few block shapes, then once for all other shapes.

    A kernel that accepts any shape computes the column of each value by integer divisions, which
    take a GPU several times longer than the rest of the kernel. Training usually has only two
    shapes: full blocks and the last block. If batch sizes vary, `MAX_STATIC_SHAPES` limits the
    number of compilations.

    Args:
        function: the function; the shape of its first argument selects the kernel.
        name: the name in the warning if the function cannot be compiled.

    Attributes:
        works: False once compilation has failed; the function then runs uncompiled.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        import torch._dynamo  # slow to import and often not needed

        # All losses share this module's code, which dynamo by default compiles at most eight times.
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, 256)
        self.works = True
        self._function, self._name = function, name
        self._static_shapes: set[torch.Size] = set()
        self._kernels: dict[tuple[str, bool], Callable[..., Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        if not self.works:
            return self._function(*arguments)
        shape = arguments[0].shape
        if len(self._static_shapes) < MAX_STATIC_SHAPES:
            self._static_shapes.add(shape)
        any_shape = shape not in self._static_shapes
        try:
            return self._kernel(arguments[0].device.type, any_shape)(*arguments)
        except torch.OutOfMemoryError:
            raise
        # Compilers can raise nearly any error.
        except Exception as error:
            # If the arguments are wrong, this raises too, and compilation is not the cause.
            result = self._function(*arguments)
            # Show two lines, as the first may name only the compiler's component that failed.
            reason = " ".join(str(error).split("\n", 2)[:2]).strip()
            warnings.warn(
                f"{self._name} cannot be compiled here ({reason}), so it runs uncompiled and "
                "somewhat slower; set the head's 'compiled' to false to silence this warning",
                stacklevel=2,
            )
            self.works = False
            return result

    def _kernel(self, device: str, any_shape: bool) -> Callable[..., Any]:
        """The compiled function: one kernel for all shapes if `any_shape`, else one per shape."""
        if (device, any_shape) not in self._kernels:
            # The key of the compiler's on-disk cache contains the options, but not the CPU's vector
            # width (torch 2.13). Without this option, torch could load code that was cached for
            # another width (on another machine, or with another ATEN_CPU_CAPABILITY); such code
            # writes past its arrays.
            options: Any = {"cpp.simdlen": _vector_bits()} if device == "cpu" else None
            self._kernels[device, any_shape] = torch.compile(
                self._function, fullgraph=True, dynamic=any_shape, options=options
            )
        return self._kernels[device, any_shape]


@cache
def _vector_bits() -> int:
    from torch._inductor import cpu_vec_isa

    return cpu_vec_isa.pick_vec_isa().bit_width()


@cache
def compiled(function: Callable[..., Any]) -> Compiled:
    """Compile a function that does not depend on the loss; all heads share the result."""
    return Compiled(function, function.__name__)


def _columns(values: Tensor) -> Tensor:
    # 64-bit column numbers would prevent a CPU from vectorizing operations with float32 values.
    return torch.arange(values.shape[1], dtype=torch.int32, device=values.device)


@cache
def can_compile(device: str) -> bool:
    """Whether `torch.compile` finds a compiler: for C++ on a CPU, Triton on CUDA."""
    if device == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return device == "cuda" and importlib.util.find_spec("triton") is not None


@lru_cache(maxsize=32)
def fused_block(loss: Loss, device: str, sigmoid: bool, centers_per_class: int) -> FusedBlock:
    """The compiled operations on a block, shared by all heads with equal losses.

    The cache keeps the 32 most recently used results and frees the kernels of the others.
    """
    if sigmoid:
        return FusedSigmoidBlock(loss, centers_per_class)
    return FusedBlock(loss, subtract_max=device != "cpu", centers_per_class=centers_per_class)
