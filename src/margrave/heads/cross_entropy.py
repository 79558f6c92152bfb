"""log Σ_j e^{s·N_j} over blocks of classes, without ever storing a (batch, classes) matrix.

The forward pass computes the cosines x̂W_cᵀ/‖w‖ of each block of class centers W_c, modifies them by
the loss, and adds them to a running log-sum-exp. The backward pass reads each block from a bounded
cache or recomputes it, and adds its part of both gradients: with p_ij = e^{s·N_ij − lse_i} ·
dN/dcosθ and f_i = s · ∂L/∂lse_i,

    dx̂_i = f_i·Σ_j p_ij ŵ_j,    d_j = (1/‖w_j‖)·Σ_i p_ij f_i x̂_i,    dw_j = d_j − (d_j·ŵ_j)ŵ_j.

The factors f scale the (A, D) features and their gradient instead of the larger (A, K) block.

The three matrix products may use lower precision (`margrave.heads.products`): only their inputs are
rounded, while sums, exponentials and the target cosine stay float32.

Shapes: A samples of all ranks, B of this one, K local classes, D features.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from margrave.distributed import World, all_reduce_sum, gather_rows, log_sum_exp_of_ranks
from margrave.heads.embeddings import inverse_length
from margrave.heads.fused_block import MAX_FUSED_SCALE, compiled, project_
from margrave.heads.products import multiply_wide, tf32
from margrave.heads.step import Step


class NegativeLogSumExp(torch.autograd.Function):
    """(B,) log Σ_{j≠y} e^{s·N_j} and (B,) cosθ_y, with their gradients.

    The inputs are this rank's features (B, D) and feature norms (B,), which the loss's negatives
    may depend on, then weight, bias and the step.
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
        if step.needs_backward and any(ctx.needs_input_grad):
            buffer = step.cosine_cache.acquire(len(step.target) * step.count(weight), step.factors)
        with tf32(step.products == "tf32"):
            total, cache = _forward_blocks(weight, bias, step, buffer)
            may_overflow = step.fused is not None and not step.fused.subtract_max
            if may_overflow and not bool(torch.isfinite(total).all()):
                # Without the compiled blocks, each row's maximum is subtracted first.
                step = replace(step, fused=None)
                total, cache = _forward_blocks(weight, bias, step, buffer)
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
        backward = _Backward(step, weight, bias, total, upstream, ctx.needs_input_grad)
        with tf32(step.products == "tf32"):
            for number, block in step.blocks(weight):
                backward.add_block(number, block, ctx.cache.get(number))
        # A second backward pass over this graph recomputes the cosines.
        if ctx.buffer is not None:
            step.cosine_cache.release(ctx.buffer)
        ctx.cache, ctx.buffer = {}, None
        return (*backward.gradients(), None)


def _forward_blocks(
    weight: Tensor, bias: Tensor | None, step: Step, buffer: Tensor | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """(A,) log-sum-exp of this rank's classes, and the cached products of the first blocks."""
    cache: dict[int, Tensor] = {}
    total, used = torch.full_like(step.target, float("-inf")), 0
    for number, block in step.blocks(weight):
        centers, factor = step.prepare(step.local(weight, block), bias, block)
        count, view = len(total) * len(centers), None
        if buffer is not None and used + count <= len(buffer):
            view = buffer[used : used + count].view(len(total), len(centers))
            cache[number] = view
            used += count
        products = torch.mm(step.factors, centers.T, out=view)
        if step.fused is not None and step.is_fused(number):
            column = step.target_column(block).int()
            total = step.fused.forward(products, factor, column, step.target, step.context, total)
        else:
            cosines = step.cosines(products, factor, in_place=not step.keeps_raw)
            negatives = step.loss.modify_negatives(cosines, step.target, step.context)
            total = torch.logaddexp(total, _log_sum_exp(negatives, step, block))
    return total, cache


def _log_sum_exp(negatives: Tensor, step: Step, block: slice) -> Tensor:
    """(A,) log-sum-exp of a block without the target."""
    scale = step.loss.scale
    column, is_here = step.target_position(block)
    target = negatives.gather(1, column)
    # The negatives may be the cached cosines themselves, so they are restored afterwards.
    negatives.scatter_(1, column, torch.where(is_here, float("-inf"), target))
    # If the target is the only class, the maximum is −∞; any finite shift works.
    lowest = torch.finfo(negatives.dtype).min / (2 * max(1.0, scale))
    shift = negatives.amax(dim=1, keepdim=True).clamp_min_(lowest).mul_(-scale)
    if step.loss.normalized and scale <= MAX_FUSED_SCALE:
        shifted = torch.add(shift, negatives, alpha=scale)
    else:
        # Round each term separately: a fused multiply-add would keep the shift's rounding error.
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
        needs_grad: tuple[bool, ...],
    ) -> None:
        self.step, self.weight, self.bias = step, weight, bias
        grad_sum, self.grad_target = upstream.unbind(dim=1)
        self.share = gradient_share(step.world)
        # Without negatives the log-sum-exp is −∞, and −∞ − (−∞) would be NaN.
        self.total = total.clamp_min(torch.finfo(total.dtype).min)
        self.factor = grad_sum * step.loss.scale
        scaled = step.features * (self.factor * self.share)[:, None].to(step.features)
        self.scaled_factors = scaled.to(step.factors.dtype)
        self.grad_features = torch.zeros_like(step.features, dtype=total.dtype)
        self.grad_norm = torch.zeros_like(total) if needs_grad[1] else None
        count = step.count(weight)
        stores_gradient = needs_grad[2] and step.update is None
        self.grad_weight = weight.new_empty(count, weight.shape[1]) if stores_gradient else None
        self.grad_bias = None if bias is None else torch.zeros_like(bias)
        self._add_target_gradients()

    def _add_target_gradients(self) -> None:
        """Compute the gradients of the target cosines with respect to features and centers."""
        step, is_here = self.step, self.step.labels >= 0
        self.position = torch.where(is_here, step.labels, 0)
        gradient = torch.where(is_here, self.grad_target, 0)[:, None]
        self.grad_features_of_targets = torch.zeros_like(self.grad_features)
        if not len(self.weight):
            self.grad_center = torch.zeros_like(self.grad_features)
            return
        centers = step.local(self.weight, self.position).to(self.grad_features.dtype)
        features = (step.features * self.share).to(centers.dtype)
        if self.bias is None:
            inverse = inverse_length(centers)[:, None]
            centers = centers * inverse
            orthogonal = features - centers * (step.target[:, None] * self.share)
            self.grad_center = gradient * inverse * orthogonal
        else:
            self.grad_center = gradient * features
        self.grad_features_of_targets = gradient * centers

    def add_block(self, number: int, block: slice, cached: Tensor | None) -> None:
        """Add the gradients of one block."""
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
            bias_rows = block if step.rows is None else step.rows[block]
            factor = (self.factor * self.share).to(gradient.dtype)
            self.grad_bias[bias_rows] += multiply_wide(gradient.T, factor[:, None])[:, 0]
        if self.grad_weight is None and step.update is None:
            return
        rows = torch.empty_like(weight) if self.grad_weight is None else self.grad_weight[block]
        multiply_wide(gradient.T, self.scaled_factors, out=rows)
        if self.bias is None:
            (project_ if step.fused is None else compiled(project_))(rows, weight, factor)
        if step.update is not None:
            column, is_here = step.target_position(block)
            _add_rows(rows, column[:, 0], torch.where(is_here, self.grad_center, 0))
            step.update(block, rows)

    def _grad_products(
        self, products: Tensor, factor: Tensor, number: int, block: slice, is_fresh: bool
    ) -> Tensor:
        """(A, K) p · dcosθ/dproduct in the products' dtype; may overwrite the products."""
        step = self.step
        if step.fused is not None and step.is_fused(number):
            column = step.target_column(block).int()
            step.fused.backward(products, factor, column, step.target, step.context, self.total)
            return products
        cosines = step.cosines(products, factor) if is_fresh or step.keeps_raw else products
        gradient = self._grad_cosines(cosines, block)
        if self.bias is None:
            gradient = gradient.mul_(factor)
        return gradient.to(step.factors.dtype)

    def _grad_cosines(self, cosines: Tensor, block: slice) -> Tensor:
        """(A, K) p, from a block's cosines or inner products, as a new tensor."""
        step, loss = self.step, self.step.loss
        analytic = loss.modify_negatives_and_slope(cosines, step.target, step.context)
        if analytic is not None:
            negatives, slope = analytic
            gradient = self._probabilities(negatives, block)
            return gradient if slope is None else gradient.mul_(slope)
        with torch.enable_grad():
            cosines = cosines.detach().requires_grad_()
            norm = step.context["feature_norm"].detach().requires_grad_()
            context = step.context | {"feature_norm": norm}
            negatives = loss.modify_negatives(cosines, step.target, context)
        upstream = self._probabilities(negatives.detach(), block)
        grad_cosines, grad_norm = torch.autograd.grad(
            negatives, (cosines, norm), upstream, allow_unused=True
        )
        if grad_norm is not None and self.grad_norm is not None:
            self.grad_norm += grad_norm * self.factor
        return torch.zeros_like(cosines) if grad_cosines is None else grad_cosines

    def _probabilities(self, negatives: Tensor, block: slice) -> Tensor:
        """(A, K) e^{s·N − lse}; 0 for the target."""
        scale = self.step.loss.scale
        gradient = torch.add(-self.total[:, None], negatives, alpha=scale)
        if not self.step.loss.normalized or scale > MAX_FUSED_SCALE:
            # A term can exceed the log-sum-exp only by rounding of huge products.
            gradient.clamp_max_(0)
        gradient.exp_()
        column, is_here = self.step.target_position(block)
        return gradient.scatter_(1, column, torch.where(is_here, 0, gradient.gather(1, column)))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradients of the features, the feature norms, the weight and the bias."""
        step = self.step
        grad_features = self.grad_features * self.factor[:, None] + self.grad_features_of_targets
        grad_features = all_reduce_sum(grad_features, step.world)[step.own]
        grad_norm = self.grad_norm
        if grad_norm is not None:
            grad_norm = all_reduce_sum(grad_norm, step.world)[step.own]
        if self.grad_bias is not None and len(self.grad_bias):
            grad_target = torch.where(step.labels >= 0, self.grad_target * self.share, 0)
            bias_rows = self.position if step.rows is None else step.rows[self.position]
            _add_rows(self.grad_bias, bias_rows, grad_target)
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
    """The factor for a shard's gradient, 1/ranks.

    Data-parallel training averages the backbone's gradients over ranks, so each rank's loss is the
    sum over its samples times ranks/samples. A shard sums the gradients of all ranks' samples, so
    it must undo the factor.
    """
    return 1 / world.size


def _add_rows(target: Tensor, position: Tensor, rows: Tensor) -> None:
    """Add rows at positions that may repeat, in a fixed order, for bit-exact reproducibility."""
    if target.is_cpu:
        target.index_add_(0, position, rows.to(target))
    else:
        target.index_put_((position,), rows.to(target), accumulate=True)
