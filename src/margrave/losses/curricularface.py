"""CurricularFace: hard negatives gain weight as training progresses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from margrave.losses.angles import above_mask, add_angle, rotate
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("curricularface")
@dataclass(frozen=True, kw_only=True)
class CurricularFace(Loss):
    """The weight of hard negatives increases with the progress of training, measured by t.

    T = cos(θ_y + m), made monotone beyond π. A negative is hard if cosθ_j > cos(θ_y + m); then
    N_j = cosθ_j·(t + cosθ_j), otherwise N_j = cosθ_j. t ← (1 − momentum)·mean(cosθ_y) + momentum·t,
    initially 0, updated before use, without gradient.

    Source: CurricularFace, CVPR 2020, equations 6 to 11; HuangYG123/CurricularFace
    ``head/metrics.py``. The paper swaps the two weights in the update of t. By default, the new
    mean has the weight 0.01 as in the authors' code; TFace uses 0.1.

    Attributes:
        margin: m in radians, 0 ≤ m < π.
        momentum: weight of the old t.

    >>> import torch
    >>> context = Context(mean_target_cosine=torch.tensor(0.2))
    >>> CurricularFace().negatives(torch.tensor([[0.5, -0.4]]), torch.tensor([0.6]), context)
    tensor([[ 0.3500, -0.4000]])
    """

    margin: float = 0.5
    momentum: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")
        self.require("momentum", 0 <= self.momentum < 1, "in [0, 1)")

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        return {"target_cosine": {"momentum": self.momentum}}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        return add_angle(cosine, self.margin, "monotone")

    def hard_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del context
        return cosines > rotate(target_cosine, self.margin)[:, None]

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        return self._weighted(cosines, target_cosine, context)[0]

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        negatives, hard, excess = self._weighted(cosines, target_cosine, context)
        # The slope is t + 2·cosθ_j for hard negatives, otherwise 1.
        return negatives, excess.addcmul_(hard, cosines).add_(1)

    def _weighted(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """N, a mask of hard negatives, and t + cosθ_j − 1 for hard negatives (otherwise 0)."""
        hard = above_mask(cosines, rotate(target_cosine, self.margin))
        excess = hard * (cosines + (context["mean_target_cosine"] - 1))
        return cosines.addcmul(excess, cosines), hard, excess
