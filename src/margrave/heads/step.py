"""The inputs of one step of a chunked head, and the split of the local classes into blocks.

The local classes are those that this rank owns; with class sampling, only the sampled ones.

Shapes: A samples of all ranks, D features, K classes: those of the block where a method takes a
block or its products, otherwise all local classes. The shapes of centers and products are those for
one center per class; with M centers, they have K·M rows or columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from margrave.distributed import World
from margrave.heads.cosine_cache import CosineCache
from margrave.heads.embeddings import inverse_length
from margrave.heads.fused_block import REDUCTION_COLUMNS, FusedBlock, cast_and_invert_norm, compiled
from margrave.heads.products import Products, product_dtype
from margrave.heads.reducers import Reducer
from margrave.losses import Context, Loss

UNCOMPILED_FIRST_BLOCK = 512
"""Maximum number of classes in the first block if it is the only uncompiled one."""
RowUpdate = Callable[[slice, Tensor], None]
"""Called with a slice of the local centers and the gradient of these centers."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The inputs of one step over the local classes; no tensor carries a gradient.

    Attributes:
        loss: the loss that modifies the cosines.
        reducer: reduces each sample's negatives to one number.
        features: (A, D) x̂, or x for a loss of inner products.
        positions: (A,) the target's position among the local classes, −1 if it is not local.
        target_cosine: (A,) cosθ_y, or W_yᵀx + b_y for a loss of inner products.
        context: the loss's context for the A samples.
        rank_rows: this rank's slice of the A samples.
        sizes: number of samples of each rank.
        centers_per_class: M, the number of centers of each class.
        target_centers: (A,) position of the target's nearest center among the centers of the local
            classes; any valid position if the target is not local.
        sampled_rows: rows of the sampled classes' centers in the weight, ascending; the weight's
            gradient is then sparse. None without sampling.
        block_size: number of classes per block.
        cosine_cache: the buffer for cosines that the backward pass does not recompute.
        world: the ranks that the classes are sharded over.
        update: applies each block of the weight's gradient at once, so the full gradient is never
            stored; None stores the gradient.
        fused: the compiled operations on a block, or None.
        products: the precision of the three matrix products, resolved by `choose_products`.
        needs_backward: whether a backward pass may follow.
    """

    loss: Loss
    reducer: Reducer
    features: Tensor
    positions: Tensor
    target_cosine: Tensor
    context: Context
    rank_rows: slice
    sizes: tuple[int, ...]
    centers_per_class: int
    target_centers: Tensor
    sampled_rows: Tensor | None
    block_size: int
    cosine_cache: CosineCache
    world: World
    update: RowUpdate | None
    fused: FusedBlock | None
    products: Products
    needs_backward: bool

    @cached_property
    def product_features(self) -> Tensor:
        """(A, D) the features in the products' dtype."""
        return self.features.to(product_dtype(self.products, self.features))

    @property
    def caches_products(self) -> bool:
        """Whether cached blocks are the raw products x̂W_cᵀ instead of cosines."""
        return self.fused is not None or self.product_features.dtype != self.target_cosine.dtype

    def num_centers(self, weight: Tensor) -> int:
        """Number of centers used in the step."""
        return len(weight) if self.sampled_rows is None else len(self.sampled_rows)

    def center_slice(self, block: slice) -> slice:
        """The slice of local centers that belong to a block of classes."""
        return slice(self.centers_per_class * block.start, self.centers_per_class * block.stop)

    def blocks(self, weight: Tensor) -> Iterator[tuple[int, slice]]:
        """Yield the index and the slice of each block of local classes."""
        num_classes = self.num_centers(weight) // self.centers_per_class
        starts = [0, *range(self.first_block_size, num_classes, self.block_size)]
        if self.fused is not None and self.fused.subtract_max:
            # A GPU reduces multiples of REDUCTION_COLUMNS faster, so split the remainder off the
            # last block.
            multiple = (num_classes - starts[-1]) // REDUCTION_COLUMNS * REDUCTION_COLUMNS
            remainder_start = starts[-1] + multiple
            starts += [remainder_start] if starts[-1] < remainder_start < num_classes else []
        for index, (start, end) in enumerate(zip(starts, [*starts[1:], num_classes], strict=True)):
            if start < end:
                yield index, slice(start, end)

    @property
    def first_block_size(self) -> int:
        """Number of classes in the first block; small if it is the only uncompiled one."""
        if self.fused is not None and self.fused.subtract_running:
            return min(self.block_size, UNCOMPILED_FIRST_BLOCK)
        return self.block_size

    def is_fused(self, index: int) -> bool:
        """Whether the block with this index runs the compiled operations.

        For a softmax on a CPU, the first block runs uncompiled: compiled operations subtract the
        log-sum-exp of the previous blocks, and the first block has none.
        """
        return self.fused is not None and (index > 0 or not self.fused.subtract_running)

    def select_local(self, values: Tensor, positions: slice | Tensor) -> Tensor:
        """Rows of the weight, or entries of the bias, by position among the local centers."""
        rows = positions if self.sampled_rows is None else self.sampled_rows[positions]
        return values[rows]

    def prepare_centers(
        self, centers: Tensor, bias: Tensor | None, block: slice
    ) -> tuple[Tensor, Tensor]:
        """(K, D) a block's centers in the products' dtype; (K,) its bias, or 1/‖w‖ without bias."""
        dtype = self.product_features.dtype
        if bias is not None:
            return centers.to(dtype), self.select_local(bias, block).to(self.target_cosine.dtype)
        if self.fused is not None and not centers.is_cpu:
            rounded, inverse_norm = compiled(cast_and_invert_norm)(centers, dtype)
        else:
            rounded, inverse_norm = centers.to(dtype), inverse_length(centers)
        return rounded, inverse_norm.to(self.target_cosine.dtype)

    def cosines(self, products: Tensor, inverse_or_bias: Tensor, in_place: bool = True) -> Tensor:
        """(A, K) cosines, or inner products plus bias, in the dtype of the target cosines.

        Overwrites the products if `in_place` is True and they already have that dtype.
        """
        if products.dtype != self.target_cosine.dtype:
            products = products.to(self.target_cosine.dtype)
        elif not in_place:
            normalized = self.loss.normalized
            return products * inverse_or_bias if normalized else products + inverse_or_bias
        if self.loss.normalized:
            return products.mul_(inverse_or_bias)
        return products.add_(inverse_or_bias)

    def target_column(self, block: slice) -> Tensor:
        """(A, 1) the target's column in a block; outside [0, K) if the block lacks the target."""
        return (self.positions - block.start)[:, None]

    def clamped_target_column(self, block: slice) -> tuple[Tensor, Tensor]:
        """(A, 1) `target_column`, or 0 without target; (A, 1) whether the block has the target."""
        column = self.target_column(block)
        has_target = (column >= 0) & (column < block.stop - block.start)
        return torch.where(has_target, column, 0), has_target
