"""The inputs of one step over the local classes, and its blocks of classes.

Shapes: A samples of all ranks, B of this one, K local classes, D features.
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
from margrave.losses import Context, Loss

FIRST_BLOCK = 512
RowUpdate = Callable[[slice, Tensor], None]
"""Called with a block of classes and the (K, D) gradient of their centers."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The inputs of one step over the local classes; none carries a gradient.

    Attributes:
        loss: the loss that modifies the cosines.
        features: (A, D) x̂, or x for a loss of inner products.
        labels: (A,) the target's position among the local classes, −1 if it is not local.
        target: (A,) cosθ_y.
        context: the loss's context for the A samples.
        own: the slice of the A samples that this rank contributed.
        sizes: number of samples of each rank.
        rows: (K,) rows of the sampled classes in the weight, ascending, for which the weight's
            gradient is sparse; None uses all rows.
        block_size: number of classes per block.
        cosine_cache: the buffer for cosines that the backward pass does not recompute.
        world: the ranks that share the classes.
        update: receives each block of the weight's gradient, which is then not stored; or None.
        fused: the compiled operations on a block, or None.
        products: the precision of the three products, resolved by `choose_products`.
        needs_backward: whether a backward pass may follow.
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
    needs_backward: bool

    @cached_property
    def factors(self) -> Tensor:
        """(A, D) the features in the products' dtype."""
        return self.features.to(product_dtype(self.products, self.features))

    @property
    def keeps_raw(self) -> bool:
        """Whether cached blocks are the raw products x̂W_cᵀ instead of cosines."""
        return self.fused is not None or self.factors.dtype != self.target.dtype

    def count(self, weight: Tensor) -> int:
        """Number of classes used in the step."""
        return len(weight) if self.rows is None else len(self.rows)

    def blocks(self, weight: Tensor) -> Iterator[tuple[int, slice]]:
        """Yield the number and the slice of each block of local classes."""
        count = self.count(weight)
        starts = [0, *range(self.first_block, count, self.block_size)]
        if self.fused is not None and self.fused.subtract_max:
            # The remainder that does not fill a thread block's registers is a separate block.
            remainder = starts[-1] + (count - starts[-1]) // REDUCTION_COLUMNS * REDUCTION_COLUMNS
            starts += [remainder] if starts[-1] < remainder < count else []
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
            if start < end:
                yield number, slice(start, end)

    @property
    def first_block(self) -> int:
        """Number of classes in the first block; small if this block is not compiled."""
        is_uncompiled = self.fused is not None and not self.fused.subtract_max
        return min(self.block_size, FIRST_BLOCK) if is_uncompiled else self.block_size

    def is_fused(self, number: int) -> bool:
        """Whether a block uses the compiled path, which on CPUs excludes the first block."""
        return self.fused is not None and (number > 0 or self.fused.subtract_max)

    def local(self, values: Tensor, positions: slice | Tensor) -> Tensor:
        """Rows of the weight, or entries of the bias, by position among the classes of the step."""
        return values[positions] if self.rows is None else values[self.rows[positions]]

    def prepare(self, centers: Tensor, bias: Tensor | None, block: slice) -> tuple[Tensor, Tensor]:
        """(K, D) class centers in the products' dtype, and (K,) 1/‖w‖ or the bias."""
        dtype = self.factors.dtype
        if bias is not None:
            return centers.to(dtype), self.local(bias, block).to(self.target.dtype)
        if self.fused is not None and not centers.is_cpu:
            rounded, factor = compiled(cast_and_invert_norm)(centers, dtype)
        else:
            rounded, factor = centers.to(dtype), inverse_length(centers)
        return rounded, factor.to(self.target.dtype)

    def cosines(self, products: Tensor, factor: Tensor, in_place: bool = True) -> Tensor:
        """(A, K) cosines, or inner products plus bias, in the target's dtype."""
        if products.dtype != self.target.dtype:
            products = products.to(self.target.dtype)
        elif not in_place:
            return products * factor if self.loss.normalized else products + factor
        return products.mul_(factor) if self.loss.normalized else products.add_(factor)

    def target_column(self, block: slice) -> Tensor:
        """(A, 1) the target's column relative to a block; outside its range for other targets."""
        return (self.labels - block.start)[:, None]

    def target_position(self, block: slice) -> tuple[Tensor, Tensor]:
        """(A, 1) the target's column in a block (0 if not in it), and whether it is in it."""
        column = self.target_column(block)
        is_here = (column >= 0) & (column < block.stop - block.start)
        return torch.where(is_here, column, 0), is_here
