"""log Σ_j e^{s·N_j} over blocks of classes, without ever storing a (batch, classes) matrix.

The forward pass computes the cosines x̂W_cᵀ/‖w‖ of each block of class centers W_c, has the loss
turn them into negatives N, and adds these to a running log-sum-exp lse. The backward pass reads
each block from a bounded cache or recomputes it, and adds its part of the gradients of features and
centers: with p_ij = e^{s·N_ij − lse_i} · dN_ij/dcosθ_ij and f_i = s · ∂L/∂lse_i,

    dx̂_i = f_i·Σ_j p_ij ŵ_j,    d_j = (1/‖w_j‖)·Σ_i p_ij f_i x̂_i,    dw_j = d_j − (d_j·ŵ_j)ŵ_j.

The factors f scale the (A, D) features and their gradient instead of the larger (A, K) block.

The three matrix products (the cosines and the two gradients) may use lower precision
(`margrave.heads.products`): only their inputs are rounded, while sums, exponentials and the target
cosine stay float32.

Shapes: A samples of all ranks, B of this one, D features, K local classes (of one block, where a
function handles a block).
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

    Args of `apply`:
        features: (B, D) x̂ of this rank, or x for a loss of inner products.
        feature_norm: (B,) ‖x‖, on which the loss's negatives may depend.
        weight: (C, D) centers of this rank's C classes.
        bias: (C,) for a loss of inner products, or None.
        step: everything without a gradient, including the features and norms of all ranks.
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
            buffer = step.cosine_cache.acquire(
                len(step.target_cosine) * step.count(weight), step.product_features
            )
        with tf32(step.products == "tf32"):
            lse, cache = _forward_blocks(weight, bias, step, buffer)
            may_overflow = step.fused is not None and not step.fused.subtract_max
            if may_overflow and not bool(torch.isfinite(lse).all()):
                # Uncompiled blocks cannot overflow, since they subtract each row's maximum.
                step = replace(step, fused=None)
                lse, cache = _forward_blocks(weight, bias, step, buffer)
        lse = log_sum_exp_of_ranks(lse, step.world)
        ctx.save_for_backward(weight, bias, lse)
        ctx.step, ctx.cache, ctx.buffer = step, cache, buffer
        return lse[step.own], step.target_cosine[step.own].clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        weight, bias, lse = ctx.saved_tensors
        step: Step = ctx.step
        upstream = gather_rows(torch.stack(gradients, dim=1), step.sizes, step.world)
        backward = _Backward(step, weight, bias, lse, upstream, ctx.needs_input_grad)
        with tf32(step.products == "tf32"):
            for number, block in step.blocks(weight):
                backward.add_block(number, block, ctx.cache.get(number))
        # A second backward pass over this graph finds no cache and recomputes the cosines.
        if ctx.buffer is not None:
            step.cosine_cache.release(ctx.buffer)
        ctx.cache, ctx.buffer = {}, None
        return (*backward.gradients(), None)


def _forward_blocks(
    weight: Tensor, bias: Tensor | None, step: Step, buffer: Tensor | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the forward pass of this rank.

    Returns:
        (A,) log-sum-exp of this rank's classes; and number -> products of each block that fits into
        the buffer, the first ones.
    """
    cache: dict[int, Tensor] = {}
    lse, used = torch.full_like(step.target_cosine, float("-inf")), 0
    for number, block in step.blocks(weight):
        centers, inverse_or_bias = step.prepare(step.local(weight, block), bias, block)
        count, view = len(lse) * len(centers), None
        if buffer is not None and used + count <= len(buffer):
            view = buffer[used : used + count].view(len(lse), len(centers))
            cache[number] = view
            used += count
        products = torch.mm(step.product_features, centers.T, out=view)
        if step.fused is not None and step.is_fused(number):
            lse = step.fused.forward(
                products,
                inverse_or_bias,
                step.target_column(block).int(),
                step.target_cosine,
                step.context,
                lse,
            )
        else:
            cosines = step.cosines(products, inverse_or_bias, in_place=not step.keeps_raw)
            negatives = step.loss.modify_negatives(cosines, step.target_cosine, step.context)
            lse = torch.logaddexp(lse, _log_sum_exp(negatives, step, block))
    return lse, cache


def _log_sum_exp(negatives: Tensor, step: Step, block: slice) -> Tensor:
    """(A,) log-sum-exp of a block without the target."""
    scale = step.loss.scale
    column, is_here = step.clamped_target_column(block)
    overwritten = negatives.gather(1, column)
    # The negatives may be the cached cosines themselves, so they are restored afterwards.
    negatives.scatter_(1, column, torch.where(is_here, float("-inf"), overwritten))
    # If the target is the only class, the maximum is −∞; any finite shift works.
    lowest = torch.finfo(negatives.dtype).min / (2 * max(1.0, scale))
    shift = negatives.amax(dim=1, keepdim=True).clamp_min_(lowest).mul_(-scale)
    if step.loss.normalized and scale <= MAX_FUSED_SCALE:
        shifted = torch.add(shift, negatives, alpha=scale)
    else:
        # Round s·N before the addition, as in the shift, so that the maximum gives exactly 0.
        shifted = torch.mul(negatives, scale).add_(shift)
    negatives.scatter_(1, column, overwritten)
    return shifted.exp_().sum(dim=1).log_().sub_(shift[:, 0])


class _Backward:
    """The backward pass over one rank's classes, block by block.

    Args:
        step: the step, as in the forward pass.
        weight: (C, D) centers of this rank's C classes.
        bias: (C,) for a loss of inner products, or None.
        lse: (A,) log-sum-exp over the classes of all ranks.
        upstream: (A, 2) the loss's gradients with respect to the log-sum-exp and to cosθ_y.
        needs_grad: whether each input of `NegativeLogSumExp` needs a gradient, in their order.
    """

    def __init__(
        self,
        step: Step,
        weight: Tensor,
        bias: Tensor | None,
        lse: Tensor,
        upstream: Tensor,
        needs_grad: tuple[bool, ...],
    ) -> None:
        self.step, self.weight, self.bias = step, weight, bias
        grad_lse, self.grad_target = upstream.unbind(dim=1)
        self.share = gradient_share(step.world)
        # Without negatives the log-sum-exp is −∞, and −∞ − (−∞) would be NaN.
        self.lse = lse.clamp_min(torch.finfo(lse.dtype).min)
        self.sample_factor = grad_lse * step.loss.scale
        scaled = step.features * (self.sample_factor * self.share)[:, None].to(step.features)
        self.scaled_features = scaled.to(step.product_features.dtype)
        self.grad_features = torch.zeros_like(step.features, dtype=lse.dtype)
        self.grad_norm = torch.zeros_like(lse) if needs_grad[1] else None
        count = step.count(weight)
        stores_gradient = needs_grad[2] and step.update is None
        self.grad_weight = weight.new_empty(count, weight.shape[1]) if stores_gradient else None
        self.grad_bias = None if bias is None else torch.zeros_like(bias)
        self._add_target_gradients()

    def _add_target_gradients(self) -> None:
        """Compute the gradients that reach features and centers through the target cosines.

        They are kept apart from the sums over blocks: `gradients` adds them at the end.
        """
        step, is_here = self.step, self.step.positions >= 0
        self.clamped_positions = torch.where(is_here, step.positions, 0)
        gradient = torch.where(is_here, self.grad_target, 0)[:, None]
        self.grad_features_of_targets = torch.zeros_like(self.grad_features)
        if not len(self.weight):
            self.grad_centers_of_targets = torch.zeros_like(self.grad_features)
            return
        centers = step.local(self.weight, self.clamped_positions).to(self.grad_features.dtype)
        features = (step.features * self.share).to(centers.dtype)
        if self.bias is None:
            inverse = inverse_length(centers)[:, None]
            centers = centers * inverse
            orthogonal = features - centers * (step.target_cosine[:, None] * self.share)
            self.grad_centers_of_targets = gradient * inverse * orthogonal
        else:
            self.grad_centers_of_targets = gradient * features
        self.grad_features_of_targets = gradient * centers

    def add_block(self, number: int, block: slice, cached: Tensor | None) -> None:
        """Add the gradients of one block."""
        step = self.step
        weight = step.local(self.weight, block)
        centers, inverse_or_bias = step.prepare(weight, self.bias, block)
        products = torch.mm(step.product_features, centers.T) if cached is None else cached
        gradient = self._grad_products(
            products, inverse_or_bias, number, block, is_fresh=cached is None
        )
        if gradient.dtype == self.grad_features.dtype:
            self.grad_features.addmm_(gradient, centers)
        else:
            self.grad_features += multiply_wide(gradient, centers)
        if self.grad_bias is not None:
            bias_rows = block if step.sampled_rows is None else step.sampled_rows[block]
            sample_factor = (self.sample_factor * self.share).to(gradient.dtype)
            self.grad_bias[bias_rows] += multiply_wide(gradient.T, sample_factor[:, None])[:, 0]
        if self.grad_weight is None and step.update is None:
            return
        grad_rows = (
            torch.empty_like(weight) if self.grad_weight is None else self.grad_weight[block]
        )
        multiply_wide(gradient.T, self.scaled_features, out=grad_rows)
        if self.bias is None:
            project = project_ if step.fused is None else compiled(project_)
            project(grad_rows, weight, inverse_or_bias)
        if step.update is not None:
            column, is_here = step.clamped_target_column(block)
            _add_rows(
                grad_rows, column[:, 0], torch.where(is_here, self.grad_centers_of_targets, 0)
            )
            step.update(block, grad_rows)

    def _grad_products(
        self, products: Tensor, inverse_or_bias: Tensor, number: int, block: slice, is_fresh: bool
    ) -> Tensor:
        """(A, K) p · dcosθ/dproduct in the products' dtype; may overwrite the products.

        Args:
            products: (A, K), freshly computed or as cached by the forward pass.
            inverse_or_bias: (K,), see `Step.prepare`.
            number: the block's number.
            block: the block's slice of the local classes.
            is_fresh: whether the products are freshly computed. Cached ones may already be cosines.
        """
        step = self.step
        if step.fused is not None and step.is_fused(number):
            step.fused.backward(
                products,
                inverse_or_bias,
                step.target_column(block).int(),
                step.target_cosine,
                step.context,
                self.lse,
            )
            return products
        is_raw = is_fresh or step.keeps_raw
        cosines = step.cosines(products, inverse_or_bias) if is_raw else products
        gradient = self._grad_cosines(cosines, block)
        if self.bias is None:
            gradient = gradient.mul_(inverse_or_bias)
        return gradient.to(step.product_features.dtype)

    def _grad_cosines(self, cosines: Tensor, block: slice) -> Tensor:
        """(A, K) p, from a block's cosines or inner products, as a new tensor."""
        step, loss = self.step, self.step.loss
        analytic = loss.modify_negatives_and_slope(cosines, step.target_cosine, step.context)
        if analytic is not None:
            negatives, slope = analytic
            probabilities = self._probabilities(negatives, block)
            return probabilities if slope is None else probabilities.mul_(slope)
        with torch.enable_grad():
            cosines = cosines.detach().requires_grad_()
            norm = step.context["feature_norm"].detach().requires_grad_()
            context = step.context | {"feature_norm": norm}
            negatives = loss.modify_negatives(cosines, step.target_cosine, context)
        probabilities = self._probabilities(negatives.detach(), block)
        grad_cosines, grad_norm = torch.autograd.grad(
            negatives, (cosines, norm), probabilities, allow_unused=True
        )
        if grad_norm is not None and self.grad_norm is not None:
            self.grad_norm += grad_norm * self.sample_factor
        return torch.zeros_like(cosines) if grad_cosines is None else grad_cosines

    def _probabilities(self, negatives: Tensor, block: slice) -> Tensor:
        """(A, K) e^{s·N − lse}; 0 for the target."""
        scale = self.step.loss.scale
        shifted = torch.add(-self.lse[:, None], negatives, alpha=scale)
        if not self.step.loss.normalized or scale > MAX_FUSED_SCALE:
            # s·N can exceed its log-sum-exp only by rounding of huge products.
            shifted.clamp_max_(0)
        values = shifted.exp_()
        column, is_here = self.step.clamped_target_column(block)
        return values.scatter_(1, column, torch.where(is_here, 0, values.gather(1, column)))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradients of the features, the feature norms, the weight and the bias."""
        step = self.step
        grad_features = (
            self.grad_features * self.sample_factor[:, None] + self.grad_features_of_targets
        )
        grad_features = all_reduce_sum(grad_features, step.world)[step.own]
        grad_norm = self.grad_norm
        if grad_norm is not None:
            grad_norm = all_reduce_sum(grad_norm, step.world)[step.own]
        if self.grad_bias is not None and len(self.grad_bias):
            grad_target = torch.where(step.positions >= 0, self.grad_target * self.share, 0)
            bias_rows = (
                self.clamped_positions
                if step.sampled_rows is None
                else step.sampled_rows[self.clamped_positions]
            )
            _add_rows(self.grad_bias, bias_rows, grad_target)
        grad_weight = self.grad_weight
        if grad_weight is not None:
            if len(grad_weight):
                _add_rows(grad_weight, self.clamped_positions, self.grad_centers_of_targets)
            if step.sampled_rows is not None:
                grad_weight = torch.sparse_coo_tensor(
                    step.sampled_rows[None],
                    grad_weight,
                    self.weight.shape,
                    is_coalesced=True,
                    check_invariants=False,
                )
        return grad_features.to(step.features.dtype), grad_norm, grad_weight, self.grad_bias


def gradient_share(world: World) -> float:
    """The factor for the gradient of a rank's shard of the classes, 1/ranks.

    Data-parallel training averages the backbone's gradients over ranks, so each rank's loss is the
    sum over its samples times ranks/samples of all ranks. A shard's gradient is not averaged, but
    the sum over the samples of all ranks, so it must undo the factor `ranks`.
    """
    return 1 / world.size


def _add_rows(target: Tensor, position: Tensor, rows: Tensor) -> None:
    """Add rows at positions that may repeat, in a fixed order, for bit-exact reproducibility."""
    if target.is_cpu:
        target.index_add_(0, position, rows.to(target))
    else:
        target.index_put_((position,), rows.to(target), accumulate=True)
