"""Reduce each sample's negatives N to one number R, one block of classes at a time.

A reducer's state accumulates the blocks of classes and is then combined over ranks. The final state
determines R and its derivatives ∂R/∂(s·N_j). R and the target T determine the sample's loss.

Shapes: A samples of all ranks, B samples of this rank, K classes in a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from margrave.distributed import World, all_reduce_log_sum_exp, all_reduce_sum
from margrave.losses import Loss, SigmoidTerms

MAX_FUSED_SCALE = 2.0**12
"""Largest scale s of a loss of cosines at which rounding of s·N − R and s·N − max s·N is harmless.

These exponents come from a fused multiply-add. Exact arithmetic makes them at most 0. At larger
scales, and for inner products, rounding could make them so large that the exponential overflows.
Then `LogSumExp.slope` clamps them to at most 0, and `LogSumExp.add` rounds s·N before it subtracts.
"""
SOFTPLUS_THRESHOLD = 50.0
"""Above this x, log(1 + e^x) is computed as x; the error, e^−50, is negligible even in float64."""


class Reducer(ABC):
    """Reduces s·N_j over the classes j ≠ y to one number R per sample."""

    bias: Tensor | None = None
    """(1,) the head's learned bias b, without gradient; None if R does not depend on one."""

    @abstractmethod
    def start(self, like: Tensor) -> Tensor:
        """The initial state (A, …), with the length, dtype and device of `like` (A,)."""

    @abstractmethod
    def add(self, state: Tensor, negatives: Tensor, column: Tensor, has_target: Tensor) -> Tensor:
        """The state after adding a block of classes.

        Args:
            state: (A, …) the state after the previous blocks.
            negatives: (A, K) N_j.
            column: (A, 1) the target's column in the block, or 0 if the block lacks the target.
            has_target: (A, 1) whether the block has the target, which R excludes.
        """

    @abstractmethod
    def combine_ranks(self, state: Tensor, world: World) -> Tensor:
        """Combine the states of all ranks into the state over all classes."""

    @abstractmethod
    def value(self, state: Tensor) -> Tensor:
        """(A,) R from the final state."""

    @abstractmethod
    def slope(self, state: Tensor, negatives: Tensor) -> Tensor:
        """(A, K) ∂R/∂(s·N_j) from the final state, as a new tensor.

        The caller ignores the values at the targets.
        """

    def bias_slope(self, state: Tensor) -> Tensor:
        """(A,) ∂R/∂b for the head's learned bias b; 0 if R does not depend on it."""
        return torch.zeros_like(self.value(state))

    @abstractmethod
    def sample_losses(self, reduced: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        """(B,) the samples' losses from R (B,), T (B,) and the learned bias (1,).

        Unlike the attribute `bias`, the argument carries a gradient.
        """


@dataclass(frozen=True)
class LogSumExp(Reducer):
    """R = log Σ_{j≠y} e^{s·N_j} and L = log(1 + e^{R − s·T}): the softmax's cross entropy."""

    loss: Loss

    def start(self, like: Tensor) -> Tensor:
        return torch.full_like(like, float("-inf"))

    def add(self, state: Tensor, negatives: Tensor, column: Tensor, has_target: Tensor) -> Tensor:
        scale = self.loss.scale
        overwritten = negatives.gather(1, column)
        # `negatives` may be the cached cosines themselves, so restore the overwritten values below.
        negatives.scatter_(1, column, torch.where(has_target, float("-inf"), overwritten))
        # If the target is the block's only class, the maximum is −∞. Any finite shift works then.
        lowest = torch.finfo(negatives.dtype).min / (2 * max(1.0, scale))
        shift = negatives.amax(dim=1, keepdim=True).clamp_min_(lowest).mul_(-scale)
        if self.loss.normalized and scale <= MAX_FUSED_SCALE:
            shifted = torch.add(shift, negatives, alpha=scale)
        else:
            # Round s·N before the addition, as in the shift, so that the maximum gives exactly 0.
            shifted = torch.mul(negatives, scale).add_(shift)
        negatives.scatter_(1, column, overwritten)
        return torch.logaddexp(state, shifted.exp_().sum(dim=1).log_().sub_(shift[:, 0]))

    def combine_ranks(self, state: Tensor, world: World) -> Tensor:
        return all_reduce_log_sum_exp(state, world)

    def value(self, state: Tensor) -> Tensor:
        return state

    def slope(self, state: Tensor, negatives: Tensor) -> Tensor:
        scale = self.loss.scale
        shifted = torch.add(-state[:, None], negatives, alpha=scale)
        if not self.loss.normalized or scale > MAX_FUSED_SCALE:
            # Exact arithmetic gives s·N ≤ R, but rounding of huge products can make s·N larger.
            shifted.clamp_max_(0)
        return shifted.exp_()

    def sample_losses(self, reduced: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        del bias
        return functional.softplus(reduced - self.loss.scale * target, threshold=SOFTPLUS_THRESHOLD)


@dataclass(frozen=True)
class SigmoidSum(Reducer):
    """R = Σ_{j≠y} log(1 + e^{s·N_j + b}) and L = w·log(1 + e^{−(s·T + b)}) + w′·R.

    `SigmoidTerms` contains the weights w and w′.

    The state is (A, 2): R and ∂R/∂b = Σ_{j≠y} sigmoid(s·N_j + b), so that the gradient of b needs
    no separate pass over the blocks.
    """

    terms: SigmoidTerms
    scale: float
    bias: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def start(self, like: Tensor) -> Tensor:
        return like.new_zeros(len(like), 2)

    def add(self, state: Tensor, negatives: Tensor, column: Tensor, has_target: Tensor) -> Tensor:
        logits = torch.add(self.bias, negatives, alpha=self.scale)
        logits.scatter_(1, column, logits.gather(1, column).masked_fill(has_target, float("-inf")))
        return state + sigmoid_sums(logits)

    def combine_ranks(self, state: Tensor, world: World) -> Tensor:
        return all_reduce_sum(state, world)

    def value(self, state: Tensor) -> Tensor:
        return state[:, 0]

    def slope(self, state: Tensor, negatives: Tensor) -> Tensor:
        del state
        return torch.add(self.bias, negatives, alpha=self.scale).sigmoid_()

    def bias_slope(self, state: Tensor) -> Tensor:
        return state[:, 1]

    def sample_losses(self, reduced: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        target_loss = functional.softplus(
            -(self.scale * target + bias), threshold=SOFTPLUS_THRESHOLD
        )
        return self.terms.target_weight * target_loss + self.terms.negatives_weight * reduced


def sigmoid_sums(logits: Tensor) -> Tensor:
    """(A, 2) Σ_j log(1 + e^{logits_j}) and Σ_j sigmoid(logits_j), without overflow."""
    softplus = logits.clamp_min(0) + torch.log1p(torch.exp(-logits.abs()))
    return torch.stack([softplus.sum(dim=1), torch.sigmoid(logits).sum(dim=1)], dim=1)
