"""log Σ_j e^{s·N_j} over blocks of classes, without ever holding batch × classes.

Forward, a block of centres W_c gives its cosines x̂W_cᵀ/‖w‖, the loss modifies them, and a running
log-sum-exp takes them in. Backward, each block is read from a bounded cache or rebuilt, and emits
its part of both gradients: with p_ij = e^{s·N_ij − lse_i} and g_ij = ∂L/∂lse_i · s·p_ij · dN/dcosθ,

    dx̂_i = Σ_j g_ij ŵ_j,    dw_j = (1/‖w_j‖)·[Σ_i g_ij x̂_i − (Σ_i g_ij cosθ_ij)·ŵ_j].

Shapes: A samples of all ranks, B of this one, K classes at hand, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from margrave.distributed import World, all_reduce_sum, gather_rows, log_sum_exp_of_ranks
from margrave.heads.cosine_cache import CosineCache
from margrave.heads.embeddings import inverse_length
from margrave.heads.fused_block import FusedBlock
from margrave.losses import Context, Loss

FIRST_BLOCK = 512
RowUpdate = Callable[[slice, Tensor], None]
"""Takes a block of classes and the gradient of their centres (K, D)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step over the classes at hand; nothing in it carries a gradient.

    Attributes:
        loss: whose negatives they are.
        features: (A, D) x̂, or x for a loss of inner products.
        labels: (A,) the target's position among the classes at hand, −1 where it is not.
        target: (A,) cosθ_y.
        context: of all A samples.
        own: which of the samples are this rank's.
        sizes: how many samples each rank has.
        rows: (K,) the rows of the weight at hand, ascending; None for all of them. With rows, the
            weight's gradient is sparse.
        block_size: classes at a time.
        cosine_cache: room for what the backward pass keeps instead of rebuilding.
        world: the ranks that hold the other classes.
        update: where given, blocks of the weight's gradient go there and nowhere else.
        fused: a block's arithmetic compiled, where that pays.
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

    def blocks(self, weight: Tensor) -> Iterator[tuple[int, slice]]:
        """The classes at hand, a numbered block at a time."""
        count = len(weight) if self.rows is None else len(self.rows)
        starts = (0, *range(self.first_block, count, self.block_size))
        for number, (start, end) in enumerate(zip(starts, (*starts[1:], count), strict=True)):
            if start < end:
                yield number, slice(start, end)

    @property
    def first_block(self) -> int:
        """Classes in the first block, which is small where it alone is not compiled."""
        return self.block_size if self.fused is None else min(self.block_size, FIRST_BLOCK)

    def is_fused(self, number: int) -> bool:
        """Whether a block goes the compiled way; it needs the first one's sum to begin with."""
        return self.fused is not None and number > 0

    def at_hand(self, values: Tensor, place: slice | Tensor) -> Tensor:
        """Rows of the weight, or entries of the bias, by their position among those at hand."""
        return values[place] if self.rows is None else values[self.rows[place]]

    def products(
        self, centres: Tensor, bias: Tensor | None, block: slice, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(A, K) a block's cosines and (K,) 1/‖w‖; or inner products and their bias."""
        products, factor = self.raw_products(centres, bias, block, out)
        return (products.mul_(factor) if bias is None else products.add_(factor)), factor

    def raw_products(
        self, centres: Tensor, bias: Tensor | None, block: slice, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(A, K) x̂W_cᵀ and (K,) what makes cosines of them, 1/‖w‖; or the bias to be added."""
        factor = inverse_length(centres) if bias is None else self.at_hand(bias, block)
        factor = factor.to(self.target.dtype)
        if self.features.dtype == self.target.dtype:
            return torch.mm(self.features, centres.T, out=out), factor
        products = (self.features @ centres.T).to(self.target.dtype)
        return (products if out is None else out.copy_(products)), factor

    @cached_property
    def target_block(self) -> Tensor:
        """(A,) the number of the block that holds the target, −1 where none does."""
        later = torch.div(self.labels - self.first_block, self.block_size, rounding_mode="floor")
        return torch.where(self.labels < 0, -1, (later + 1).clamp_min(0))

    @cached_property
    def target_column(self) -> Tensor:
        """(A, 1) the target's column in that block."""
        later = (self.labels - self.first_block) % self.block_size
        return torch.where(self.labels < self.first_block, self.labels, later)[:, None]

    def fused_column(self, number: int) -> Tensor:
        """(A, 1) the target's column in a block, −1 where it is elsewhere."""
        column = torch.where((self.target_block == number)[:, None], self.target_column, -1)
        return column.int()

    def place(self, number: int) -> tuple[Tensor, Tensor]:
        """(A, 1) the target's column in a block, 0 if it is elsewhere, and whether it is here."""
        there = (self.target_block == number)[:, None]
        return self.target_column * there, there


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
        room = None
        if any(ctx.needs_input_grad):
            count = len(weight) if step.rows is None else len(step.rows)
            room = step.cosine_cache.take(len(step.target) * count, step.target)
        total, cache = _sum_up(weight, bias, step, room, step.fused)
        if step.fused is not None and not bool(torch.isfinite(total).all()):
            # The fused sum takes no block's maximum and so may overflow; this one cannot.
            total, cache = _sum_up(weight, bias, step, room, None)
        total = log_sum_exp_of_ranks(total, step.world)
        ctx.save_for_backward(weight, bias, total)
        ctx.step, ctx.cache, ctx.room = step, cache, room
        return total[step.own], step.target[step.own].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, total = ctx.saved_tensors
        step: Step = ctx.step
        upstream = gather_rows(torch.stack(gradients, dim=1), step.sizes, step.world)
        passes = _Backward(step, weight, bias, total, upstream, ctx.needs_input_grad)
        for number, block in step.blocks(weight):
            passes.through(number, block, ctx.cache.get(number))
        # Another backward pass over this graph rebuilds them.
        step.cosine_cache.give_back(ctx.room)
        ctx.cache, ctx.room = {}, None
        return (*passes.gradients(), None)


def _sum_up(
    weight: Tensor, bias: Tensor | None, step: Step, room: Tensor | None, fused: FusedBlock | None
) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """(A,) this rank's log-sum-exp, and the cosines of as many blocks as there is room for."""
    cache: dict[int, tuple[Tensor, Tensor]] = {}
    total, used = torch.full_like(step.target, float("-inf")), 0
    for number, block in step.blocks(weight):
        centres = step.at_hand(weight, block)
        count, kept = len(total) * len(centres), None
        if room is not None and used + count <= len(room):
            kept = room[used : used + count].view(len(total), len(centres))
            used += count
        if fused is not None and step.is_fused(number):
            products, factor = step.raw_products(centres, bias, block, kept)
            column = step.fused_column(number)
            total = fused.forward(products, factor, column, step.target, step.context, total)
        else:
            products, factor = step.products(centres, bias, block, kept)
            negatives = step.loss.negatives(products, step.target, step.context)
            total = torch.logaddexp(total, _log_sum_exp(negatives, step, number))
        if kept is not None:
            cache[number] = products, factor
    return total, cache


def _log_sum_exp(negatives: Tensor, step: Step, number: int) -> Tensor:
    """(A,) of a block, its target left out."""
    scale = step.loss.scale
    column, there = step.place(number)
    target = negatives.gather(1, column)
    # The negatives may be the cached cosines themselves, so they are restored afterwards.
    negatives.scatter_(1, column, torch.where(there, float("-inf"), target))
    # Where the target is alone there is no largest; any finite number serves.
    lowest = torch.finfo(negatives.dtype).min / (2 * max(1.0, scale))
    shift = negatives.amax(dim=1, keepdim=True).clamp_min_(lowest).mul_(-scale)
    shifted = torch.add(shift, negatives, alpha=scale)
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
        of_sum, self.of_target = upstream.unbind(dim=1)
        factor = of_sum * step.loss.scale
        # Without any negative the sum is −∞, from which −∞ cannot be taken.
        total = total.clamp_min(torch.finfo(total.dtype).min)
        # s · p · upstream is e^{s·N + shift}, up to a sign that a mean of losses never has.
        self.shift = (factor.abs().log() - total)[:, None]
        signed = bool((factor < 0).any())
        self.sign = factor.sign()[:, None] if signed else None
        self.share = gradient_share(step.world)
        self.shared_features = step.features * self.share
        self.of_features = torch.zeros_like(step.features, dtype=total.dtype)
        self.of_norm = torch.zeros_like(total) if needed[1] else None
        count = len(weight) if step.rows is None else len(step.rows)
        keeps = needed[2] and step.update is None
        self.of_weight = weight.new_empty(count, weight.shape[1]) if keeps else None
        self.of_bias = None if bias is None else torch.zeros_like(bias)
        self._reach_targets()

    def _reach_targets(self) -> None:
        """What the targets' cosines pass on, to the features and to B rows of the weight."""
        step, here = self.step, self.step.labels >= 0
        self.position = torch.where(here, step.labels, 0)
        gradient = torch.where(here, self.of_target, 0)[:, None]
        if not len(self.weight):
            self.of_centre = torch.zeros_like(self.of_features)
            return
        centres = step.at_hand(self.weight, self.position).to(self.of_features.dtype)
        features = self.shared_features.to(centres.dtype)
        if self.bias is None:
            inverse = inverse_length(centres)[:, None]
            centres = centres * inverse
            across = features - centres * (step.target[:, None] * self.share)
            self.of_centre = gradient * inverse * across
        else:
            self.of_centre = gradient * features
        self.of_features += gradient * centres

    def through(self, number: int, block: slice, cached: tuple[Tensor, Tensor] | None) -> None:
        """Add one block's part."""
        step = self.step
        centres = step.at_hand(self.weight, block)
        products, factor = cached or step.products(centres, self.bias, block)
        gradient, along = self._of_block(products, factor, number)
        low = gradient.to(centres.dtype)
        if low.dtype == self.of_features.dtype:
            self.of_features.addmm_(low, centres)
        else:
            self.of_features += low @ centres
        if self.of_bias is not None:
            added = along.mul_(self.share).to(self.of_bias)
            self.of_bias[block if step.rows is None else step.rows[block]] += added
        if self.of_weight is None and step.update is None:
            return
        rows = torch.empty_like(centres) if self.of_weight is None else self.of_weight[block]
        torch.mm(low.T, self.shared_features, out=rows)
        if self.bias is None:
            along = along * factor
            rows.addcmul_(centres, along.to(rows)[:, None], value=-self.share)
        if step.update is not None:
            column, there = step.place(number)
            inside = there[:, 0].nonzero()[:, 0]
            _add_rows(rows, column[inside, 0], self.of_centre[inside])
            step.update(block, rows)

    def _of_block(self, products: Tensor, factor: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """(A, K) the gradient of x̂W_cᵀ, and (K,) Σ_i of it times the cosines, or of it alone."""
        step = self.step
        if step.fused is not None and step.is_fused(number) and self.sign is None:
            column = step.fused_column(number)
            return step.fused.backward(
                products, factor, column, step.target, step.context, self.shift
            )
        gradient = self._of_products(products, number)
        if self.bias is not None:
            return gradient, gradient.sum(dim=0)
        gradient = gradient.mul_(factor)
        return gradient, (gradient * products).sum(dim=0)

    def _of_products(self, products: Tensor, number: int) -> Tensor:
        """(A, K) the gradient of a block's cosines or inner products, a tensor of its own."""
        step, loss = self.step, self.step.loss
        analytic = loss.negatives_and_slope(products, step.target, step.context)
        if analytic is not None:
            negatives, slope = analytic
            gradient = self._of_negatives(negatives, number)
            return gradient if slope is None else gradient.mul_(slope)
        with torch.enable_grad():
            products = products.detach().requires_grad_()
            norm = step.context["feature_norm"].detach().requires_grad_()
            context = replace(step.context, feature_norm=norm)
            negatives = loss.negatives(products, step.target, context)
        upstream = self._of_negatives(negatives.detach(), number)
        of_products, of_norm = torch.autograd.grad(
            negatives, (products, norm), upstream, allow_unused=True
        )
        if of_norm is not None and self.of_norm is not None:
            self.of_norm += of_norm
        return torch.zeros_like(products) if of_products is None else of_products

    def _of_negatives(self, negatives: Tensor, number: int) -> Tensor:
        """(A, K) s · p · upstream, and 0 for the target."""
        gradient = torch.add(self.shift, negatives, alpha=self.step.loss.scale).exp_()
        if self.sign is not None:
            gradient.mul_(self.sign)
        column, there = self.step.place(number)
        return gradient.scatter_(1, column, torch.where(there, 0, gradient.gather(1, column)))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of the features, the feature norms, the weight and the bias."""
        step = self.step
        of_features = all_reduce_sum(self.of_features, step.world)[step.own]
        of_norm = self.of_norm
        if of_norm is not None:
            of_norm = all_reduce_sum(of_norm, step.world)[step.own]
        if self.of_bias is not None and len(self.of_bias):
            here = torch.where(step.labels >= 0, self.of_target * self.share, 0)
            where = self.position if step.rows is None else step.rows[self.position]
            _add_rows(self.of_bias, where, here)
        of_weight = self.of_weight
        if of_weight is not None:
            if len(of_weight):
                _add_rows(of_weight, self.position, self.of_centre)
            if step.rows is not None:
                of_weight = torch.sparse_coo_tensor(
                    step.rows[None],
                    of_weight,
                    self.weight.shape,
                    is_coalesced=True,
                    check_invariants=False,
                )
        return of_features.to(step.features.dtype), of_norm, of_weight, self.of_bias


def gradient_share(world: World) -> float:
    """What a shard's gradient is multiplied by: 1/ranks.

    Data-parallel training averages the ranks' gradients of the backbone, so each rank's loss is its
    samples' sum times ranks/samples. A shard meets every rank's samples and sums them: for it the
    factor is taken back.
    """
    return 1 / world.size


def _add_rows(into: Tensor, position: Tensor, rows: Tensor) -> None:
    """Add rows, some to one place, always in the same order, so that runs repeat bit for bit."""
    if into.is_cuda:
        into.index_put_((position,), rows.to(into), accumulate=True)
    else:
        into.index_add_(0, position, rows.to(into))
