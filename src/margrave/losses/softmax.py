"""Plain softmax: no margin, no normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("softmax")
@dataclass(frozen=True, kw_only=True)
class Softmax(Loss):
    """Cross-entropy over W_jᵀx + b_j.

    T = W_yᵀx + b_y, N_j = W_jᵀx + b_j: the head passes inner products instead of cosines. Products
    are clipped to about ±10^34 (in float32, for s = 1), so that sums of s·N_j do not overflow.

    Source: the baseline of all cited papers; `torch.nn.functional.cross_entropy` of a linear layer.

    >>> Softmax().scale
    1.0
    """

    normalized: ClassVar[bool] = False

    scale: float = 1.0

    def _limit(self, products: Tensor) -> float:
        """The largest magnitude of a product.

        The exponent 0.9 leaves room for sums of s·N_j, in float32 a factor of about 7000.
        """
        import torch

        return torch.finfo(products.dtype).max ** 0.9 / max(1.0, self.scale)

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        return cosine.clamp(-self._limit(cosine), self._limit(cosine))

    def modify_target(self, cosine: Tensor, context: Context) -> Tensor:
        # There is no margin, so straight_through has no effect.
        return self.target(cosine, context)

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del target_cosine, context
        return cosines.clamp(-self._limit(cosines), self._limit(cosines))

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        negatives = self.negatives(cosines, target_cosine, context)
        # The slope of the clamp is 1 inside and 0 outside; le_ keeps the dtype of the products.
        return negatives, cosines.abs().le_(self._limit(cosines))
