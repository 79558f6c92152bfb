"""Negatives reduced over blocks of classes, without ever storing a (batch, classes) matrix.

The forward pass computes the cosines x̂W_cᵀ/‖w‖ of each block of class centers W_c, has the loss
turn them into negatives N, and adds these to the reduced value R (`margrave.heads.reducers`),
log Σ_j e^{s·N_j} for a softmax. The backward pass reads each block from a bounded cache or
recomputes it, and adds its part of the gradients of features and centers: with
p_ij = ∂R_i/∂(s·N_ij) · dN_ij/dcosθ_ij, for a softmax e^{s·N_ij − R_i} · dN_ij/dcosθ_ij, and
f_i = s · ∂L/∂R_i,

    dx̂_i = f_i·Σ_j p_ij ŵ_j,    d_j = (1/‖w_j‖)·Σ_i p_ij f_i x̂_i,    dw_j = d_j − (d_j·ŵ_j)ŵ_j.

The factors f scale the (A, D) features and their gradient instead of the larger (A, K) block.

The three matrix products (the cosines and the two gradients) may use lower precision
(`margrave.heads.products`): only their inputs are rounded, while sums, exponentials and the target
cosine stay float32.

Shapes: A samples of all ranks, B of this one, D features, K local classes (of one block, where a
function handles a block); centers and products have several rows or columns per class if it has
several centers, of which only the nearest gives the cosine and gets the gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from margrave.distributed import World, all_reduce_sum, gather_rows
from margrave.heads.centers import nearest_centers, spread
from margrave.heads.embeddings import inverse_length
from margrave.heads.fused_block import compiled, project_
from margrave.heads.products import multiply_wide, tf32
from margrave.heads.step import Step


class ReducedNegatives(torch.autograd.Function):
    """(B,) the reduced negatives R and (B,) cosθ_y, with their gradients.

    Args of `apply`:
        features: (B, D) x̂ of this rank, or x for a loss of inner products.
        feature_norm: (B,) ‖x‖, on which the loss's negatives may depend.
        weight: (C, D) or (C, K, D) centers of this rank's C classes.
        bias: (C,) for a loss of inner products, or None.
        sigmoid_bias: (1,) for a loss with a sigmoid per class, or None.
        step: everything without a gradient, including the features and norms of all ranks.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        features: Tensor,
        feature_norm: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sigmoid_bias: Tensor | None,
        step: Step,
    ) -> tuple[Tensor, Tensor]:
        del features, feature_norm, sigmoid_bias
        ctx.weight_shape, weight = weight.shape, weight.flatten(0, -2)
        buffer = None
        if step.needs_backward and any(ctx.needs_input_grad):
            buffer = step.cosine_cache.acquire(
                len(step.target_cosine) * step.count(weight), step.product_features
            )
        with tf32(step.products == "tf32"):
            state, cache = _forward_blocks(weight, bias, step, buffer)
            may_overflow = step.fused is not None and step.fused.subtract_running
            if may_overflow and not bool(torch.isfinite(state).all()):
                # Uncompiled blocks cannot overflow, since they subtract each row's maximum.
                step = replace(step, fused=None)
                state, cache = _forward_blocks(weight, bias, step, buffer)
        state = step.reducer.of_ranks(state, step.world)
        ctx.save_for_backward(weight, bias, state)
        ctx.step, ctx.cache, ctx.buffer = step, cache, buffer
        return step.reducer.value(state)[step.own], step.target_cosine[step.own].clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        weight, bias, state = ctx.saved_tensors
        step: Step = ctx.step
        upstream = gather_rows(torch.stack(gradients, dim=1), step.sizes, step.world)
        backward = _Backward(step, weight, bias, state, upstream, ctx.needs_input_grad)
        with tf32(step.products == "tf32"):
            for number, block in step.blocks(weight):
                backward.add_block(number, block, ctx.cache.get(number))
        # A second backward pass over this graph finds no cache and recomputes the cosines.
        if ctx.buffer is not None:
            step.cosine_cache.release(ctx.buffer)
        ctx.cache, ctx.buffer = {}, None
        grad_sigmoid_bias = None
        if ctx.needs_input_grad[4]:
            by_sample = gradients[0] * step.reducer.bias_slope(state)[step.own]
            grad_sigmoid_bias = by_sample.sum()[None]
        grad_features, grad_norm, grad_weight, grad_bias = backward.gradients(ctx.weight_shape)
        return grad_features, grad_norm, grad_weight, grad_bias, grad_sigmoid_bias, None


def _forward_blocks(
    weight: Tensor, bias: Tensor | None, step: Step, buffer: Tensor | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run the forward pass of this rank.

    Returns:
        the reducer's state (A, …) for this rank's classes; and number -> products of each block
        that fits into the buffer, the first ones.
    """
    cache: dict[int, Tensor] = {}
    state, used = step.reducer.start(step.target_cosine), 0
    for number, block in step.blocks(weight):
        rows = step.local(weight, step.centers_of(block))
        centers, inverse_or_bias = step.prepare(rows, bias, block)
        count, view = len(state) * len(centers), None
        if buffer is not None and used + count <= len(buffer):
            view = buffer[used : used + count].view(len(state), len(centers))
            cache[number] = view
            used += count
        products = torch.mm(step.product_features, centers.T, out=view)
        if step.fused is not None and step.is_fused(number):
            state = step.fused.forward(
                products,
                inverse_or_bias,
                step.target_column(block).int(),
                step.target_cosine,
                step.context,
                state,
                step.reducer.bias,
            )
        else:
            cosines = step.cosines(products, inverse_or_bias, in_place=not step.keeps_raw)
            cosines, _ = nearest_centers(cosines, step.centers_per_class)
            negatives = step.loss.modify_negatives(cosines, step.target_cosine, step.context)
            state = step.reducer.add(state, negatives, *step.clamped_target_column(block))
    return state, cache


class _Backward:
    """The backward pass over one rank's classes, block by block.

    Args:
        step: the step, as in the forward pass.
        weight: (C·K, D) the K centers of each of this rank's C classes.
        bias: (C,) for a loss of inner products, or None.
        state: (A, …) the reducer's, over the classes of all ranks.
        upstream: (A, 2) the loss's gradients with respect to R and to cosθ_y.
        needs_grad: whether each input of `ReducedNegatives` needs a gradient, in their order.
    """

    def __init__(
        self,
        step: Step,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor,
        upstream: Tensor,
        needs_grad: tuple[bool, ...],
    ) -> None:
        self.step, self.weight, self.bias = step, weight, bias
        grad_reduced, self.grad_target = upstream.unbind(dim=1)
        self.share = gradient_share(step.world)
        # Without negatives a log-sum-exp is −∞, and −∞ − (−∞) would be NaN.
        self.state = state.clamp_min(torch.finfo(state.dtype).min)
        self.sample_factor = grad_reduced * step.loss.scale
        scaled = step.features * (self.sample_factor * self.share)[:, None].to(step.features)
        self.scaled_features = scaled.to(step.product_features.dtype)
        self.grad_features = torch.zeros_like(step.features, dtype=state.dtype)
        self.grad_norm = torch.zeros_like(grad_reduced) if needs_grad[1] else None
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
        gradient = torch.where(is_here, self.grad_target, 0)[:, None]
        self.grad_features_of_targets = torch.zeros_like(self.grad_features)
        if not len(self.weight):
            self.grad_centers_of_targets = torch.zeros_like(self.grad_features)
            return
        centers = step.local(self.weight, step.target_centers).to(self.grad_features.dtype)
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
        rows = step.centers_of(block)
        weight = step.local(self.weight, rows)
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
        grad_rows = torch.empty_like(weight) if self.grad_weight is None else self.grad_weight[rows]
        multiply_wide(gradient.T, self.scaled_features, out=grad_rows)
        if self.bias is None:
            project = project_ if step.fused is None else compiled(project_)
            project(grad_rows, weight, inverse_or_bias)
        if step.update is not None:
            _, is_here = step.clamped_target_column(block)
            column = torch.where(is_here[:, 0], step.target_centers - rows.start, 0)
            _add_rows(grad_rows, column, torch.where(is_here, self.grad_centers_of_targets, 0))
            step.update(rows, grad_rows)

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
                self.state,
                step.reducer.bias,
            )
            return products
        is_raw = is_fresh or step.keeps_raw
        cosines = step.cosines(products, inverse_or_bias) if is_raw else products
        cosines, nearest = nearest_centers(cosines, step.centers_per_class)
        gradient = spread(self._grad_cosines(cosines, block), nearest, step.centers_per_class)
        if self.bias is None:
            gradient = gradient.mul_(inverse_or_bias)
        return gradient.to(step.product_features.dtype)

    def _grad_cosines(self, cosines: Tensor, block: slice) -> Tensor:
        """(A, K) p, from a block's cosines or inner products, as a new tensor."""
        step, loss = self.step, self.step.loss
        analytic = loss.modify_negatives_and_slope(cosines, step.target_cosine, step.context)
        if analytic is not None:
            negatives, slope = analytic
            grad_negatives = self._slope(negatives, block)
            return grad_negatives if slope is None else grad_negatives.mul_(slope)
        with torch.enable_grad():
            cosines = cosines.detach().requires_grad_()
            norm = step.context["feature_norm"].detach().requires_grad_()
            context = step.context | {"feature_norm": norm}
            negatives = loss.modify_negatives(cosines, step.target_cosine, context)
        grad_negatives = self._slope(negatives.detach(), block)
        grad_cosines, grad_norm = torch.autograd.grad(
            negatives, (cosines, norm), grad_negatives, allow_unused=True
        )
        if grad_norm is not None and self.grad_norm is not None:
            self.grad_norm += grad_norm * self.sample_factor
        return torch.zeros_like(cosines) if grad_cosines is None else grad_cosines

    def _slope(self, negatives: Tensor, block: slice) -> Tensor:
        """(A, K) ∂R/∂(s·N); 0 for the target."""
        values = self.step.reducer.slope(self.state, negatives)
        column, is_here = self.step.clamped_target_column(block)
        return values.scatter_(1, column, torch.where(is_here, 0, values.gather(1, column)))

    def gradients(self, weight_shape: torch.Size) -> tuple[Tensor | None, ...]:
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
                step.target_centers
                if step.sampled_rows is None
                else step.sampled_rows[step.target_centers]
            )
            _add_rows(self.grad_bias, bias_rows, grad_target)
        grad_weight = self.grad_weight
        if grad_weight is not None:
            if len(grad_weight):
                _add_rows(grad_weight, step.target_centers, self.grad_centers_of_targets)
            grad_weight = grad_weight.view(-1, *weight_shape[1:])
            if step.sampled_rows is not None:
                count = step.centers_per_class
                grad_weight = torch.sparse_coo_tensor(
                    step.sampled_rows[None, ::count] // count,
                    grad_weight,
                    weight_shape,
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


class SharedByRanks(torch.autograd.Function):
    """A parameter of which every rank has a copy: its gradient is that of all ranks' samples."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, world: World) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.world = world
        return parameter.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return all_reduce_sum(gradient, ctx.world) * gradient_share(ctx.world), None


def _add_rows(target: Tensor, position: Tensor, rows: Tensor) -> None:
    """Add rows at positions that may repeat, in a fixed order, for bit-exact reproducibility."""
    if target.is_cpu:
        target.index_add_(0, position, rows.to(target))
    else:
        target.index_put_((position,), rows.to(target), accumulate=True)
