"""MV-Softmax: re-weights misclassified negatives; the successor of SV-Softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from margrave.losses.angles import BaseMargin, above_mask, base_margin
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("mv_softmax")
@dataclass(frozen=True, kw_only=True)
class MVSoftmax(Loss):
    """Raises the cosines of hard negatives, proportionally or by a constant.

    A negative is hard if cosθ_j > f(m, θ_y), where f is the base margin; then
    N_j = (t+1)·cosθ_j + t (adaptive) or cosθ_j + t (fixed), otherwise N_j = cosθ_j. T = f(m, θ_y),
    or cosθ_y for samples exempted by the easy margin. Adaptive weighting with t equals SV-Softmax
    with t + 1.

    Source: Mis-classified Vector Guided Softmax Loss, AAAI 2020, equations 7 to 9; ``MV-AM`` and
    ``MV-Arc`` of xiaoboCASIA/SV-X-Softmax ``fc_layers.py``.

    Attributes:
        base: the base margin f.
        margin: m, in cosine or radians depending on `base`; unused for base ``none``.
        hard_weight: t ≥ 0; with 0, only the base margin remains.
        weighting: how t modifies hard negatives, ``adaptive`` or ``fixed``.
        easy_margin: apply the margin only where cosθ_y > 0.

    >>> import torch
    >>> loss = MVSoftmax(weighting="fixed", hard_weight=0.2)
    >>> loss.negatives(torch.tensor([[0.5, 0.1]]), torch.tensor([0.6]), Context())
    tensor([[0.7000, 0.1000]])
    """

    scale: float = 32.0
    base: BaseMargin = "cosine"
    margin: float = 0.35
    hard_weight: float = 0.2
    weighting: Literal["adaptive", "fixed"] = "adaptive"
    easy_margin: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")
        self.require("hard_weight", self.hard_weight >= 0, "at least 0")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        modified = base_margin(cosine, self.margin, self.base)
        return modified.where(cosine > 0, cosine) if self.easy_margin else modified

    def hard_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del context
        return cosines > base_margin(target_cosine, self.margin, self.base)[:, None]

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del context
        return self._weighted(cosines, target_cosine)[0]

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        del context
        negatives, hard = self._weighted(cosines, target_cosine)
        if self.weighting == "fixed":
            return negatives, None
        # 1 + t where the negative is hard, otherwise 1.
        return negatives, hard.mul_(self.hard_weight).add_(1)

    def _weighted(self, cosines: Tensor, target_cosine: Tensor) -> tuple[Tensor, Tensor]:
        """N, and a new mask (1 or 0, in the dtype of the cosines) of the hard negatives."""
        hard = above_mask(cosines, base_margin(target_cosine, self.margin, self.base))
        if self.weighting == "fixed":
            return cosines.add(hard, alpha=self.hard_weight), hard
        return cosines.addcmul(hard, cosines + 1, value=self.hard_weight), hard
