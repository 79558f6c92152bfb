"""SV-Softmax: re-weights misclassified negatives, the support vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.angles import BaseMargin, above_mask, base_margin
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("sv_softmax")
@dataclass(frozen=True, kw_only=True)
class SVSoftmax(Loss):
    """Weights hard negatives by e^{s(t−1)(cosθ_j+1)}.

    A negative is hard if cosθ_j > f(m, θ_y), where f is the base margin (cosθ_y, cosθ_y − m or
    cos(θ_y + m)); then N_j = t·cosθ_j + t − 1, otherwise N_j = cosθ_j. T = f(m, θ_y), or cosθ_y for
    samples exempted by the easy margin.

    Source: Support Vector Guided Softmax, arXiv 1812.11317, equations 8 to 11; defaults of a
    public re-implementation (t = 1.12, m = 0.45, s = 32). Base ``none`` is the original SV-Softmax;
    ``cosine`` (SV-AM-Softmax, the paper's best) and ``angular`` add a margin.

    Attributes:
        base: the base margin f.
        margin: m, in cosine or radians depending on `base`; unused for base ``none``.
        hard_weight: t ≥ 1; with 1, only the base margin remains.
        easy_margin: apply no margin to samples with cosθ_y ≤ m (cosine) or cosθ_y ≤ 0 (angular).

    >>> import torch
    >>> loss = SVSoftmax(base="none", hard_weight=1.2)
    >>> loss.negatives(torch.tensor([[0.5, 0.1]]), torch.tensor([0.3]), Context())
    tensor([[0.8000, 0.1000]])
    """

    scale: float = 32.0
    base: BaseMargin = "cosine"
    margin: float = 0.45
    hard_weight: float = 1.12
    easy_margin: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")
        self.require("hard_weight", self.hard_weight >= 1, "at least 1")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        modified = base_margin(cosine, self.margin, self.base)
        if not self.easy_margin:
            return modified
        exempt_below = self.margin if self.base == "cosine" else 0.0
        return modified.where(cosine > exempt_below, cosine)

    def hard_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del context
        return cosines > base_margin(target_cosine, self.margin, self.base)[:, None]

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del context
        return self._weighted(cosines, target_cosine)[0]

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        del context
        negatives, hard = self._weighted(cosines, target_cosine)
        # t where the negative is hard, otherwise 1.
        return negatives, hard.mul_(self.hard_weight - 1).add_(1)

    def _weighted(self, cosines: Tensor, target_cosine: Tensor) -> tuple[Tensor, Tensor]:
        """N, and a new mask (1 or 0, in the dtype of the cosines) of the hard negatives."""
        hard = above_mask(cosines, base_margin(target_cosine, self.margin, self.base))
        return cosines.addcmul(hard, cosines + 1, value=self.hard_weight - 1), hard
