"""Reduce negatives over blocks of classes, without ever storing a (batch, classes) matrix.

The forward pass computes the cosines x̂W_cᵀ/‖w‖ of each block of class centers W_c. The loss turns
them into negatives N, which are added to the reduced value R (`margrave.heads.reducers`); for a
softmax, R = log Σ_j e^{s·N_j}. The backward pass reads each block from a bounded cache or
recomputes it, and adds the block's contribution to the gradients of features and centers:

    p_ij = ∂R_i/∂(s·N_ij) · dN_ij/dcosθ_ij,    for a softmax e^{s·N_ij − R_i} · dN_ij/dcosθ_ij,
    f_i = s · ∂L/∂R_i,
    dx̂_i = f_i·Σ_j p_ij ŵ_j,    d_j = (1/‖w_j‖)·Σ_i p_ij f_i x̂_i,    dw_j = d_j − (d_j·ŵ_j)ŵ_j.

The factors f scale the (A, D) features and their gradient instead of the larger (A, K) block.

The three matrix products (the cosines and the two gradients) may use lower precision
(`margrave.heads.products`): only their inputs are rounded, while sums, exponentials and the target
cosine stay float32.

Shapes: A samples of all ranks, B samples of this rank, D features, K classes: those of the block
where a function handles a block, otherwise all local classes. With M centers per class, centers
have K·M rows and products K·M columns; only the nearest center of a class gives the cosine and gets
the gradient.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from margrave.distributed import World, all_reduce_sum, gather_rows
from margrave.heads.centers import gradient_of_all_cosines, nearest_centers
from margrave.heads.embeddings import inverse_length
from margrave.heads.fused_block import compiled, project_
from margrave.heads.products import multiply_wide, tf32
from margrave.heads.step import Step


class ReducedNegatives(torch.autograd.Function):
    """(B,) reduced negatives R and (B,) target cosines cosθ_y, both differentiable.

    Args of `apply`:
        features: (B, D) x̂ of this rank, or x for a loss of inner products.
        feature_norm: (B,) ‖x‖, on which the loss's negatives may depend.
        weight: (C, D) or (C, M, D) centers of this rank's C classes.
        bias: (C,) for a loss of inner products, or None.
        sigmoid_bias: (1,) for a loss with a sigmoid per class, or None.
        step: all inputs without a gradient, including the features and norms of all ranks.
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
        # These inputs only receive gradients; `step` contains the values of all ranks.
        del features, feature_norm, sigmoid_bias
        ctx.weight_shape, weight = weight.shape, weight.flatten(0, -2)
        buffer = None
        if step.needs_backward and any(ctx.needs_input_grad):
            buffer = step.cosine_cache.acquire(
                len(step.target_cosine) * step.num_centers(weight), step.product_features
            )
        with tf32(step.products == "tf32"):
            state, cache = _forward_blocks(weight, bias, step, buffer)
            may_overflow = step.fused is not None and step.fused.subtract_running
            if may_overflow and not bool(torch.isfinite(state).all()):
                # Uncompiled blocks cannot overflow, since they subtract each row's maximum.
                step = replace(step, fused=None)
                state, cache = _forward_blocks(weight, bias, step, buffer)
        state = step.reducer.combine_ranks(state, step.world)
        ctx.save_for_backward(weight, bias, state)
        ctx.step, ctx.cache, ctx.buffer = step, cache, buffer
        return step.reducer.value(state)[step.rank_rows], step.target_cosine[step.rank_rows].clone()

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
            for index, block in step.blocks(weight):
                backward.add_block(index, block, ctx.cache.get(index))
        # A second backward pass over this graph finds no cache and recomputes the cosines.
        if ctx.buffer is not None:
            step.cosine_cache.release(ctx.buffer)
        ctx.cache, ctx.buffer = {}, None
        grad_sigmoid_bias = None
        if ctx.needs_input_grad[4]:  # sigmoid_bias
            grad_reduced, _ = gradients
            grad_by_sample = grad_reduced * step.reducer.bias_slope(state)[step.rank_rows]
            grad_sigmoid_bias = grad_by_sample.sum()[None]
        grad_features, grad_norm, grad_weight, grad_bias = backward.gradients(ctx.weight_shape)
        return grad_features, grad_norm, grad_weight, grad_bias, grad_sigmoid_bias, None


def _forward_blocks(
    weight: Tensor, bias: Tensor | None, step: Step, buffer: Tensor | None
) -> tuple[Tensor, dict[int, Tensor]]:
    """Reduce the negatives of this rank's classes.

    Returns:
        The reducer's state (A, …), and a dictionary: block index -> cached products or cosines (see
        `Step.caches_products`). It contains as many of the first blocks as fit into the buffer.
    """
    cache: dict[int, Tensor] = {}
    state, used = step.reducer.start(step.target_cosine), 0
    for index, block in step.blocks(weight):
        block_weight = step.select_local(weight, step.center_slice(block))
        centers, inverse_or_bias = step.prepare_centers(block_weight, bias, block)
        num_products, cached = len(state) * len(centers), None
        if buffer is not None and used + num_products <= len(buffer):
            cached = buffer[used : used + num_products].view(len(state), len(centers))
            cache[index] = cached
            used += num_products
        products = torch.mm(step.product_features, centers.T, out=cached)
        if step.fused is not None and step.is_fused(index):
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
            cosines = step.cosines(products, inverse_or_bias, in_place=not step.caches_products)
            cosines, _ = nearest_centers(cosines, step.centers_per_class)
            negatives = step.loss.modify_negatives(cosines, step.target_cosine, step.context)
            state = step.reducer.add(state, negatives, *step.clamped_target_column(block))
    return state, cache


class _Backward:
    """The backward pass over one rank's classes, block by block.

    Args:
        step: the step, as in the forward pass.
        weight: (C·M, D) the M centers of each of this rank's C classes.
        bias: (C,) for a loss of inner products, or None.
        state: (A, …) the reducer's state over the classes of all ranks.
        upstream: (A, 2) the loss's gradients with respect to R and cosθ_y.
        needs_grad: for each input of `ReducedNegatives`, in order, whether it needs a gradient.
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
        _, needs_grad_norm, needs_grad_weight, *_ = needs_grad
        self.share = gradient_share(step.world)  # 1/ranks, for weight and bias
        # Without negatives a log-sum-exp is −∞, and −∞ − (−∞) would be NaN.
        self.state = state.clamp_min(torch.finfo(state.dtype).min)
        self.sample_factor = grad_reduced * step.loss.scale  # f in the module's docstring
        scaled = step.features * (self.sample_factor * self.share)[:, None].to(step.features)
        self.scaled_features = scaled.to(step.product_features.dtype)
        self.grad_features = torch.zeros_like(step.features, dtype=state.dtype)
        self.grad_norm = torch.zeros_like(grad_reduced) if needs_grad_norm else None
        num_centers = step.num_centers(weight)
        stores_gradient = needs_grad_weight and step.update is None
        self.grad_weight = (
            weight.new_empty(num_centers, weight.shape[1]) if stores_gradient else None
        )
        self.grad_bias = None if bias is None else torch.zeros_like(bias)
        self._compute_target_gradients()

    def _compute_target_gradients(self) -> None:
        """Compute the gradients that reach features and centers through the target cosines.

        `gradients` adds them to the sums over blocks at the end. With `Step.update`, `add_block`
        adds those of the centers instead, before it applies the block's gradient.
        """
        step, is_local = self.step, self.step.positions >= 0
        grad_target = torch.where(is_local, self.grad_target, 0)[:, None]
        self.target_grad_features = torch.zeros_like(self.grad_features)
        if not len(self.weight):  # this rank owns no classes
            self.target_grad_centers = torch.zeros_like(self.grad_features)
            return
        centers = step.select_local(self.weight, step.target_centers).to(self.grad_features.dtype)
        features = (step.features * self.share).to(centers.dtype)
        if self.bias is None:
            inverse_norm = inverse_length(centers)[:, None]
            centers = centers * inverse_norm  # ŵ_y
            orthogonal = features - centers * (step.target_cosine[:, None] * self.share)
            self.target_grad_centers = grad_target * inverse_norm * orthogonal
        else:
            self.target_grad_centers = grad_target * features
        self.target_grad_features = grad_target * centers

    def add_block(self, index: int, block: slice, cached: Tensor | None) -> None:
        """Add one block's gradients; with `Step.update`, apply the gradient of its centers."""
        step = self.step
        rows = step.center_slice(block)
        block_weight = step.select_local(self.weight, rows)
        centers, inverse_or_bias = step.prepare_centers(block_weight, self.bias, block)
        products = torch.mm(step.product_features, centers.T) if cached is None else cached
        gradient = self._grad_products(
            products, inverse_or_bias, index, block, is_fresh=cached is None
        )
        if gradient.dtype == self.grad_features.dtype:
            self.grad_features.addmm_(gradient, centers)
        else:
            self.grad_features += multiply_wide(gradient, centers)
        if self.grad_bias is not None:
            bias_rows = block if step.sampled_rows is None else step.sampled_rows[block]
            bias_factor = (self.sample_factor * self.share).to(gradient.dtype)
            self.grad_bias[bias_rows] += multiply_wide(gradient.T, bias_factor[:, None])[:, 0]
        if self.grad_weight is None and step.update is None:
            return
        grad_rows = (
            torch.empty_like(block_weight) if self.grad_weight is None else self.grad_weight[rows]
        )
        multiply_wide(gradient.T, self.scaled_features, out=grad_rows)
        if self.bias is None:
            project = project_ if step.fused is None else compiled(project_)
            project(grad_rows, block_weight, inverse_or_bias)
        if step.update is not None:
            _, has_target = step.clamped_target_column(block)
            target_rows = torch.where(has_target[:, 0], step.target_centers - rows.start, 0)
            _add_rows(grad_rows, target_rows, torch.where(has_target, self.target_grad_centers, 0))
            step.update(rows, grad_rows)

    def _grad_products(
        self, products: Tensor, inverse_or_bias: Tensor, index: int, block: slice, is_fresh: bool
    ) -> Tensor:
        """(A, K) p · dcosθ/dproduct in the products' dtype; the module's docstring defines p.

        May overwrite the products.

        Args:
            products: (A, K), freshly computed or as cached by the forward pass.
            inverse_or_bias: (K,), see `Step.prepare_centers`.
            index: the block's index.
            block: the block's slice of the local classes.
            is_fresh: whether the products are freshly computed. Cached ones may already be cosines.
        """
        step = self.step
        if step.fused is not None and step.is_fused(index):
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
        is_product = is_fresh or step.caches_products
        cosines = step.cosines(products, inverse_or_bias) if is_product else products
        cosines, nearest = nearest_centers(cosines, step.centers_per_class)
        gradient = gradient_of_all_cosines(
            self._grad_cosines(cosines, block), nearest, step.centers_per_class
        )
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
        column, has_target = self.step.clamped_target_column(block)
        return values.scatter_(1, column, torch.where(has_target, 0, values.gather(1, column)))

    def gradients(self, weight_shape: torch.Size) -> tuple[Tensor | None, ...]:
        """Gradients of this rank's features, their norms, weight and bias; None if not needed."""
        step = self.step
        grad_features = self.grad_features * self.sample_factor[:, None] + self.target_grad_features
        grad_features = all_reduce_sum(grad_features, step.world)[step.rank_rows]
        grad_norm = self.grad_norm
        if grad_norm is not None:
            grad_norm = all_reduce_sum(grad_norm, step.world)[step.rank_rows]
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
                _add_rows(grad_weight, step.target_centers, self.target_grad_centers)
            grad_weight = grad_weight.view(-1, *weight_shape[1:])
            if step.sampled_rows is not None:
                centers_per_class = step.centers_per_class
                class_rows = step.sampled_rows[::centers_per_class] // centers_per_class
                grad_weight = torch.sparse_coo_tensor(
                    class_rows[None],
                    grad_weight,
                    weight_shape,
                    is_coalesced=True,
                    check_invariants=False,
                )
        return grad_features.to(step.features.dtype), grad_norm, grad_weight, self.grad_bias


def gradient_share(world: World) -> float:
    """1/ranks, the factor for the gradient of a rank's shard of the classes.

    DDP averages the backbone's gradients over ranks. A rank's loss is therefore the sum over its
    samples, times the number of ranks, divided by the number of samples of all ranks. The gradient
    of a shard already covers the samples of all ranks and is not averaged, so it must be divided by
    the number of ranks.
    """
    return 1 / world.size


class ReplicatedParameter(torch.autograd.Function):
    """A parameter that every rank has a copy of; its gradient covers the samples of all ranks."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, world: World) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.world = world
        return parameter.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return all_reduce_sum(gradient, ctx.world) * gradient_share(ctx.world), None


def _add_rows(destination: Tensor, positions: Tensor, rows: Tensor) -> None:
    """Add rows at positions that may repeat, in a fixed order, for bit-exact reproducibility."""
    if destination.is_cpu:
        destination.index_add_(0, positions, rows.to(destination))
    else:
        destination.index_put_((positions,), rows.to(destination), accumulate=True)
