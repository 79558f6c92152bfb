"""How a head reduces each sample's negatives N to one number R, block by block of classes.

A reducer's state grows by each block of classes and is then combined over ranks. From it follow R,
its derivatives ∂R/∂(s·N_j), and with the target T the sample's loss.

Shapes: A samples, K classes of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from margrave.distributed import World, all_reduce_sum, log_sum_exp_of_ranks
from margrave.losses import Loss, SigmoidTerms

MAX_FUSED_SCALE = 2.0**12
"""Up to this loss scale s, rounding cannot make e^{s·N − lse}, which is at most 1, overflow."""
# Above this, log(1 + e^x) is replaced by x; e^−50 is negligible next to 50 even in float64.
SOFTPLUS_THRESHOLD = 50.0


class Reducer(ABC):
    """Reduces s·N_j over the classes j ≠ y."""

    bias: Tensor | None = None
    """(1,) the head's learned bias, without gradient; None if R has none."""

    @abstractmethod
    def start(self, like: Tensor) -> Tensor:
        """The state (A, …) before any class; `like` (A,) gives length, dtype and device."""

    @abstractmethod
    def add(self, state: Tensor, negatives: Tensor, column: Tensor, is_here: Tensor) -> Tensor:
        """The state with a block's classes.

        Args:
            state: (A, …) of the blocks before.
            negatives: (A, K) N_j.
            column: (A, 1) the target's column in the block, or 0 if the block lacks the target.
            is_here: (A, 1) whether the block has the target, which is left out.
        """

    @abstractmethod
    def of_ranks(self, state: Tensor, world: World) -> Tensor:
        """The state over the classes of all ranks."""

    @abstractmethod
    def value(self, state: Tensor) -> Tensor:
        """(A,) R."""

    @abstractmethod
    def slope(self, state: Tensor, negatives: Tensor) -> Tensor:
        """(A, K) ∂R/∂(s·N_j), a new tensor; what it contains for targets does not count."""

    def bias_slope(self, state: Tensor) -> Tensor:
        """(A,) ∂R/∂b for the head's learned bias b; 0 if R has none."""
        return torch.zeros_like(self.value(state))

    @abstractmethod
    def sample_losses(self, value: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        """(B,) the samples' losses from R (B,) and T (B,); `bias` is the head's learned one."""


@dataclass(frozen=True)
class LogSumExp(Reducer):
    """R = log Σ_{j≠y} e^{s·N_j} and L = log(1 + e^{R − s·T}): the softmax's cross entropy."""

    loss: Loss

    def start(self, like: Tensor) -> Tensor:
        return torch.full_like(like, float("-inf"))

    def add(self, state: Tensor, negatives: Tensor, column: Tensor, is_here: Tensor) -> Tensor:
        scale = self.loss.scale
        overwritten = negatives.gather(1, column)
        # The negatives may be the cached cosines themselves, so they are restored afterwards.
        negatives.scatter_(1, column, torch.where(is_here, float("-inf"), overwritten))
        # If the target is the only class, the maximum is −∞; any finite shift works.
        lowest = torch.finfo(negatives.dtype).min / (2 * max(1.0, scale))
        shift = negatives.amax(dim=1, keepdim=True).clamp_min_(lowest).mul_(-scale)
        if self.loss.normalized and scale <= MAX_FUSED_SCALE:
            shifted = torch.add(shift, negatives, alpha=scale)
        else:
            # Round s·N before the addition, as in the shift, so that the maximum gives exactly 0.
            shifted = torch.mul(negatives, scale).add_(shift)
        negatives.scatter_(1, column, overwritten)
        return torch.logaddexp(state, shifted.exp_().sum(dim=1).log_().sub_(shift[:, 0]))

    def of_ranks(self, state: Tensor, world: World) -> Tensor:
        return log_sum_exp_of_ranks(state, world)

    def value(self, state: Tensor) -> Tensor:
        return state

    def slope(self, state: Tensor, negatives: Tensor) -> Tensor:
        scale = self.loss.scale
        shifted = torch.add(-state[:, None], negatives, alpha=scale)
        if not self.loss.normalized or scale > MAX_FUSED_SCALE:
            # s·N can exceed its log-sum-exp only by rounding of huge products.
            shifted.clamp_max_(0)
        return shifted.exp_()

    def sample_losses(self, value: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        del bias
        return functional.softplus(value - self.loss.scale * target, threshold=SOFTPLUS_THRESHOLD)


@dataclass(frozen=True)
class SigmoidSum(Reducer):
    """R = Σ_{j≠y} log(1 + e^{s·N_j + b}) and L = w·log(1 + e^{−(s·T + b)}) + w′·R.

    The state is (A, 2): R, and ∂R/∂b = Σ_{j≠y} sigmoid(s·N_j + b), so that the bias needs no pass
    of its own.
    """

    terms: SigmoidTerms
    scale: float
    bias: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def start(self, like: Tensor) -> Tensor:
        return like.new_zeros(len(like), 2)

    def add(self, state: Tensor, negatives: Tensor, column: Tensor, is_here: Tensor) -> Tensor:
        logits = torch.add(self.bias, negatives, alpha=self.scale)
        logits.scatter_(1, column, logits.gather(1, column).masked_fill(is_here, float("-inf")))
        return state + sigmoid_sums(logits)

    def of_ranks(self, state: Tensor, world: World) -> Tensor:
        return all_reduce_sum(state, world)

    def value(self, state: Tensor) -> Tensor:
        return state[:, 0]

    def slope(self, state: Tensor, negatives: Tensor) -> Tensor:
        del state
        return torch.add(self.bias, negatives, alpha=self.scale).sigmoid_()

    def bias_slope(self, state: Tensor) -> Tensor:
        return state[:, 1]

    def sample_losses(self, value: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        own = functional.softplus(-(self.scale * target + bias), threshold=SOFTPLUS_THRESHOLD)
        return self.terms.target_weight * own + self.terms.negatives_weight * value


def sigmoid_sums(logits: Tensor) -> Tensor:
    """(A, 2) Σ_j log(1 + e^{logits_j}) and Σ_j sigmoid(logits_j), without overflow."""
    softplus = logits.clamp_min(0) + torch.log1p(torch.exp(-logits.abs()))
    return torch.stack([softplus.sum(dim=1), torch.sigmoid(logits).sum(dim=1)], dim=1)
