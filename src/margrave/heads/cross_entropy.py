"""log Σ_j e^{s·N_j} over blocks of classes, without ever holding batch × classes.

Forward, a block of class centers W_c gives its cosines x̂W_cᵀ/‖w‖, the loss modifies them, and a
running log-sum-exp takes them in. Backward, each block is read from a bounded cache or rebuilt, and
emits its part of both gradients: with p_ij = e^{s·N_ij − lse_i} · dN/dcosθ and f_i = s · ∂L/∂lse_i,

    dx̂_i = f_i·Σ_j p_ij ŵ_j,    d_j = (1/‖w_j‖)·Σ_i p_ij f_i x̂_i,    dw_j = d_j − (d_j·ŵ_j)ŵ_j.

The factors f never meet the (A, K) block: they scale the (A, D) features and their gradient.

The three products may be taken in lower precision (`margrave.heads.products`): their factors are
then rounded, and sums, exponentials and the target's own cosine stay float32.

Shapes: A samples of all ranks, B of this one, K local classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from margrave.distributed import World, all_reduce_sum, gather_rows, log_sum_exp_of_ranks
from margrave.heads.cosine_cache import CosineCache
from margrave.heads.embeddings import inverse_length
from margrave.heads.fused_block import (
    MOST_FUSED_SCALE,
    REGISTERS,
    FusedBlock,
    cast_and_measure,
    compiled,
    project_,
)
from margrave.heads.products import Products, multiply_wide, product_dtype, tf32
from margrave.losses import Context, Loss

FIRST_BLOCK = 512
RowUpdate = Callable[[slice, Tensor], None]
"""Takes a block of classes and the gradient of their centers (K, D)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step over the local classes; nothing in it carries a gradient.

    Attributes:
        loss: whose negatives they are.
        features: (A, D) x̂, or x for a loss of inner products.
        labels: (A,) the target's position among the local classes, −1 where it is not.
        target: (A,) cosθ_y.
        context: of all A samples.
        own: which of the samples are this rank's.
        sizes: how many samples each rank has.
        rows: (K,) the rows of the weight that take part, ascending; None for all of them. With
            rows, the weight's gradient is sparse.
        block_size: classes at a time.
        cosine_cache: a buffer for what the backward pass keeps instead of rebuilding.
        world: the ranks that hold the other classes.
        update: where given, blocks of the weight's gradient go there and nowhere else.
        fused: a block's arithmetic compiled, where that pays.
        products: the precision of the three products, as `choose_products` resolved it.
        keeps: whether a backward pass may follow.
    """

    loss: Loss
    features: Tensor
    labels: Tensor
    target: Tensor
    context: Context
    own: slice
    sizes: tuple[int, ...]
    rows: Tensor | None
    block_size: int
    cosine_cache: CosineCache
    world: World
    update: RowUpdate | None
    fused: FusedBlock | None
    products: Products
    keeps: bool

    @cached_property
    def factors(self) -> Tensor:
        """(A, D) the features as the products take them."""
        return self.features.to(product_dtype(self.products, self.features))

    @property
    def keeps_raw(self) -> bool:
        """Whether blocks stay x̂W_cᵀ as multiplied; otherwise they become cosines in place."""
        return self.fused is not None or self.factors.dtype != self.target.dtype

    def count(self, weight: Tensor) -> int:
        """Classes that take part."""
        return len(weight) if self.rows is None else len(self.rows)

    def blocks(self, weight: Tensor) -> Iterator[tuple[int, slice]]:
        """The local classes, a numbered block at a time."""
        count = self.count(weight)
        starts = [0, *range(self.first_block, count, self.block_size)]
        if self.fused is not None and self.fused.takes_maximum:
            # What does not fill a GPU's registers is a block of its own.
            remainder = starts[-1] + (count - starts[-1]) // REGISTERS * REGISTERS
            starts += [remainder] if starts[-1] < remainder < count else []
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
            if start < end:
                yield number, slice(start, end)

    @property
    def first_block(self) -> int:
        """Classes in the first block, which is small where it alone is not compiled."""
        starts_plain = self.fused is not None and not self.fused.takes_maximum
        return min(self.block_size, FIRST_BLOCK) if starts_plain else self.block_size

    def is_fused(self, number: int) -> bool:
        """Whether a block goes the compiled way; on processors that needs the first one's sum."""
        return self.fused is not None and (number > 0 or self.fused.takes_maximum)

    def local(self, values: Tensor, place: slice | Tensor) -> Tensor:
        """Rows of the weight, or entries of the bias, by their position among those taking part."""
        return values[place] if self.rows is None else values[self.rows[place]]

    def prepare(self, centers: Tensor, bias: Tensor | None, block: slice) -> tuple[Tensor, Tensor]:
        """(K, D) class centers as the products take them, and (K,) 1/‖w‖ or the bias."""
        dtype = self.factors.dtype
        if bias is not None:
            return centers.to(dtype), self.local(bias, block).to(self.target.dtype)
        if self.fused is not None and not centers.is_cpu:
            low, factor = compiled(cast_and_measure)(centers, dtype)
        else:
            low, factor = centers.to(dtype), inverse_length(centers)
        return low, factor.to(self.target.dtype)

    def cosines(self, products: Tensor, factor: Tensor, in_place: bool = True) -> Tensor:
        """(A, K) cosines or inner products with bias, in the target's dtype."""
        if products.dtype != self.target.dtype:
            products = products.to(self.target.dtype)
        elif not in_place:
            return products * factor if self.loss.normalized else products + factor
        return products.mul_(factor) if self.loss.normalized else products.add_(factor)

    def target_column(self, block: slice) -> Tensor:
        """(A, 1) the target's column in a block, outside of it where the target is elsewhere."""
        return (self.labels - block.start)[:, None]

    def place(self, block: slice) -> tuple[Tensor, Tensor]:
        """(A, 1) the target's column in a block, 0 if it is elsewhere, and whether it is here."""
        column = self.target_column(block)
        there = (column >= 0) & (column < block.stop - block.start)
        return torch.where(there, column, 0), there


class NegativeLogSumExp(torch.autograd.Function):
    """(B,) log Σ_{j≠y} e^{s·N_j} and (B,) cosθ_y, with their gradients.

    Takes this rank's features (B, D) and feature norms (B,), which the loss's negatives may read,
    then weight, bias and the step.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        features: Tensor,
        feature_norm: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        step: Step,
    ) -> tuple[Tensor, Tensor]:
        del features, feature_norm
        buffer = None
        if step.keeps and any(ctx.needs_input_grad):
            buffer = step.cosine_cache.acquire(len(step.target) * step.count(weight), step.factors)
        with tf32(step.products == "tf32"):
            total, cache = _sum_up(weight, bias, step, buffer)
            may_overflow = step.fused is not None and not step.fused.takes_maximum
            if may_overflow and not bool(torch.isfinite(total).all()):
                # This sum takes every block's maximum.
                step = replace(step, fused=None)
                total, cache = _sum_up(weight, bias, step, buffer)
        total = log_sum_exp_of_ranks(total, step.world)
        ctx.save_for_backward(weight, bias, total)
        ctx.step, ctx.cache, ctx.buffer = step, cache, buffer
        return total[step.own], step.target[step.own].clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        weight, bias, total = ctx.saved_tensors
        step: Step = ctx.step
        upstream = gather_rows(torch.stack(gradients, dim=1), step.sizes, step.world)
        passes = _Backward(step, weight, bias, total, upstream, ctx.needs_input_grad)
        with tf32(step.products == "tf32"):
            for number, block in step.blocks(weight):
                passes.add_block(number, block, ctx.cache.get(number))
        # Another backward pass over this graph rebuilds them.
        if ctx.buffer is not None:
            step.cosine_cache.release(ctx.buffer)
        ctx.cache, ctx.buffer = {}, None
        return (*passes.gradients(), None)


def _sum_up(
    weight: Tensor, bias: Tensor | None, step: Step, buffer: Tensor | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """(A,) this rank's log-sum-exp, and the products of as many blocks as the buffer holds."""
    cache: dict[int, Tensor] = {}
    total, used = torch.full_like(step.target, float("-inf")), 0
    for number, block in step.blocks(weight):
        centers, factor = step.prepare(step.local(weight, block), bias, block)
        count, kept = len(total) * len(centers), None
        if buffer is not None and used + count <= len(buffer):
            kept = buffer[used : used + count].view(len(total), len(centers))
            cache[number] = kept
            used += count
        products = torch.mm(step.factors, centers.T, out=kept)
        if step.fused is not None and step.is_fused(number):
            column = step.target_column(block).int()
            total = step.fused.forward(products, factor, column, step.target, step.context, total)
        else:
            cosines = step.cosines(products, factor, in_place=not step.keeps_raw)
            negatives = step.loss.negatives(cosines, step.target, step.context)
            total = torch.logaddexp(total, _log_sum_exp(negatives, step, block))
    return total, cache


def _log_sum_exp(negatives: Tensor, step: Step, block: slice) -> Tensor:
    """(A,) of a block, its target left out."""
    scale = step.loss.scale
    column, there = step.place(block)
    target = negatives.gather(1, column)
    # The negatives may be the cached cosines themselves, so they are restored afterwards.
    negatives.scatter_(1, column, torch.where(there, float("-inf"), target))
    # Where the target is alone there is no largest; any finite number serves.
    lowest = torch.finfo(negatives.dtype).min / (2 * max(1.0, scale))
    shift = negatives.amax(dim=1, keepdim=True).clamp_min_(lowest).mul_(-scale)
    if step.loss.normalized and scale <= MOST_FUSED_SCALE:
        shifted = torch.add(shift, negatives, alpha=scale)
    else:
        # A fused multiply-add keeps what the shift rounded away: of huge products, thousands.
        shifted = torch.mul(negatives, scale).add_(shift)
    negatives.scatter_(1, column, target)
    return shifted.exp_().sum(dim=1).log_().sub_(shift[:, 0])


class _Backward:
    """The backward pass over one rank's classes, block by block."""

    def __init__(
        self,
        step: Step,
        weight: Tensor,
        bias: Tensor | None,
        total: Tensor,
        upstream: Tensor,
        needed: tuple[bool, ...],
    ) -> None:
        self.step, self.weight, self.bias = step, weight, bias
        grad_sum, self.grad_target = upstream.unbind(dim=1)
        self.share = gradient_share(step.world)
        # Without any negative the sum is −∞, from which −∞ cannot be taken.
        self.total = total.clamp_min(torch.finfo(total.dtype).min)
        self.factor = grad_sum * step.loss.scale
        scaled = step.features * (self.factor * self.share)[:, None].to(step.features)
        self.scaled_factors = scaled.to(step.factors.dtype)
        self.grad_features = torch.zeros_like(step.features, dtype=total.dtype)
        self.grad_norm = torch.zeros_like(total) if needed[1] else None
        count = step.count(weight)
        keeps = needed[2] and step.update is None
        self.grad_weight = weight.new_empty(count, weight.shape[1]) if keeps else None
        self.grad_bias = None if bias is None else torch.zeros_like(bias)
        self._add_target_gradients()

    def _add_target_gradients(self) -> None:
        """What the targets' cosines pass on, to the features and to B rows of the weight."""
        step, here = self.step, self.step.labels >= 0
        self.position = torch.where(here, step.labels, 0)
        gradient = torch.where(here, self.grad_target, 0)[:, None]
        self.from_targets = torch.zeros_like(self.grad_features)
        if not len(self.weight):
            self.grad_center = torch.zeros_like(self.grad_features)
            return
        centers = step.local(self.weight, self.position).to(self.grad_features.dtype)
        features = (step.features * self.share).to(centers.dtype)
        if self.bias is None:
            inverse = inverse_length(centers)[:, None]
            centers = centers * inverse
            across = features - centers * (step.target[:, None] * self.share)
            self.grad_center = gradient * inverse * across
        else:
            self.grad_center = gradient * features
        self.from_targets = gradient * centers

    def add_block(self, number: int, block: slice, cached: Tensor | None) -> None:
        """Add one block's part."""
        step = self.step
        weight = step.local(self.weight, block)
        centers, factor = step.prepare(weight, self.bias, block)
        products = torch.mm(step.factors, centers.T) if cached is None else cached
        gradient = self._grad_products(products, factor, number, block, cached is None)
        if gradient.dtype == self.grad_features.dtype:
            self.grad_features.addmm_(gradient, centers)
        else:
            self.grad_features += multiply_wide(gradient, centers)
        if self.grad_bias is not None:
            into = block if step.rows is None else step.rows[block]
            factor = (self.factor * self.share).to(gradient.dtype)
            self.grad_bias[into] += multiply_wide(gradient.T, factor[:, None])[:, 0]
        if self.grad_weight is None and step.update is None:
            return
        rows = torch.empty_like(weight) if self.grad_weight is None else self.grad_weight[block]
        multiply_wide(gradient.T, self.scaled_factors, out=rows)
        if self.bias is None:
            (project_ if step.fused is None else compiled(project_))(rows, weight, factor)
        if step.update is not None:
            column, there = step.place(block)
            _add_rows(rows, column[:, 0], torch.where(there, self.grad_center, 0))
            step.update(block, rows)

    def _grad_products(
        self, products: Tensor, factor: Tensor, number: int, block: slice, fresh: bool
    ) -> Tensor:
        """(A, K) p · dcosθ/dproduct, as the products take it; nothing else keeps the products."""
        step = self.step
        if step.fused is not None and step.is_fused(number):
            column = step.target_column(block).int()
            step.fused.backward(products, factor, column, step.target, step.context, self.total)
            return products
        cosines = step.cosines(products, factor) if fresh or step.keeps_raw else products
        gradient = self._grad_cosines(cosines, block)
        if self.bias is None:
            gradient = gradient.mul_(factor)
        return gradient.to(step.factors.dtype)

    def _grad_cosines(self, cosines: Tensor, block: slice) -> Tensor:
        """(A, K) p, from a block's cosines or inner products: a tensor of its own."""
        step, loss = self.step, self.step.loss
        analytic = loss.negatives_and_slope(cosines, step.target, step.context)
        if analytic is not None:
            negatives, slope = analytic
            gradient = self._probabilities(negatives, block)
            return gradient if slope is None else gradient.mul_(slope)
        with torch.enable_grad():
            cosines = cosines.detach().requires_grad_()
            norm = step.context["feature_norm"].detach().requires_grad_()
            context = replace(step.context, feature_norm=norm)
            negatives = loss.negatives(cosines, step.target, context)
        upstream = self._probabilities(negatives.detach(), block)
        grad_cosines, grad_norm = torch.autograd.grad(
            negatives, (cosines, norm), upstream, allow_unused=True
        )
        if grad_norm is not None and self.grad_norm is not None:
            self.grad_norm += grad_norm * self.factor
        return torch.zeros_like(cosines) if grad_cosines is None else grad_cosines

    def _probabilities(self, negatives: Tensor, block: slice) -> Tensor:
        """(A, K) e^{s·N − lse}, and 0 for the target."""
        scale = self.step.loss.scale
        gradient = torch.add(-self.total[:, None], negatives, alpha=scale)
        if not self.step.loss.normalized or scale > MOST_FUSED_SCALE:
            # Rounding of huge products alone brings them above their sum.
            gradient.clamp_max_(0)
        gradient.exp_()
        column, there = self.step.place(block)
        return gradient.scatter_(1, column, torch.where(there, 0, gradient.gather(1, column)))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of the features, the feature norms, the weight and the bias."""
        step = self.step
        grad_features = self.grad_features * self.factor[:, None] + self.from_targets
        grad_features = all_reduce_sum(grad_features, step.world)[step.own]
        grad_norm = self.grad_norm
        if grad_norm is not None:
            grad_norm = all_reduce_sum(grad_norm, step.world)[step.own]
        if self.grad_bias is not None and len(self.grad_bias):
            here = torch.where(step.labels >= 0, self.grad_target * self.share, 0)
            where = self.position if step.rows is None else step.rows[self.position]
            _add_rows(self.grad_bias, where, here)
        grad_weight = self.grad_weight
        if grad_weight is not None:
            if len(grad_weight):
                _add_rows(grad_weight, self.position, self.grad_center)
            if step.rows is not None:
                grad_weight = torch.sparse_coo_tensor(
                    step.rows[None],
                    grad_weight,
                    self.weight.shape,
                    is_coalesced=True,
                    check_invariants=False,
                )
        return grad_features.to(step.features.dtype), grad_norm, grad_weight, self.grad_bias


def gradient_share(world: World) -> float:
    """What a shard's gradient is multiplied by: 1/ranks.

    Data-parallel training averages the ranks' gradients of the backbone, so each rank's loss is its
    samples' sum times ranks/samples. A shard meets every rank's samples and sums them: for it the
    factor is taken back.
    """
    return 1 / world.size


def _add_rows(into: Tensor, position: Tensor, rows: Tensor) -> None:
    """Add rows, some to one place, always in the same order, so that runs repeat bit for bit."""
    if into.is_cpu:
        into.index_add_(0, position, rows.to(into))
    else:
        into.index_put_((position,), rows.to(into), accumulate=True)
