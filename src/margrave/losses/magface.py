"""MagFace: the margin and a regularizer depend on the feature norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.angles import add_angle
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("magface")
@dataclass(frozen=True, kw_only=True)
class MagFace(Loss):
    """Features with a large norm get a large margin, and the penalty rewards large norms.

    a = ‖x‖ clipped to [l_a, u_a]; m(a) = l_m + (u_m − l_m)·(a − l_a)/(u_a − l_a);
    T = cos(θ_y + m(a)), made monotone beyond π; N_j = cosθ_j; penalty λ_g·(1/a + a/u_a²).
    Unlike in AdaFace, the margin has a gradient with respect to the norm.

    Source: MagFace, CVPR 2021, arXiv 2103.06627, equations 4 and 5; IrvingMeng/MagFace
    ``models/magface.py``, from which the defaults are taken.

    Attributes:
        lowest_norm: l_a > 0, the lower limit of the norm.
        highest_norm: u_a > l_a, the upper limit of the norm.
        lowest_margin: l_m in radians, the margin at l_a.
        highest_margin: u_m in radians, l_m ≤ u_m < π, the margin at u_a.
        penalty_weight: λ_g ≥ 0, the weight of the penalty.

    >>> import torch
    >>> MagFace().penalty(Context(feature_norm=torch.tensor([10.0, 110.0]))).round(decimals=3)
    tensor([3.5290, 0.6360])
    """

    lowest_norm: float = 10.0
    highest_norm: float = 110.0
    lowest_margin: float = 0.45
    highest_margin: float = 0.8
    penalty_weight: float = 35.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lowest_norm", self.lowest_norm > 0, "above 0")
        self.require("highest_norm", self.highest_norm > self.lowest_norm, "above lowest_norm")
        self.require("lowest_margin", self.lowest_margin >= 0, "at least 0")
        is_valid = self.lowest_margin <= self.highest_margin < math.pi
        self.require("highest_margin", is_valid, "at least lowest_margin and below π")
        self.require("penalty_weight", self.penalty_weight >= 0, "at least 0")

    def _clipped_norm(self, context: Context) -> Tensor:
        return context["feature_norm"].clamp(self.lowest_norm, self.highest_norm)

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        slope = (self.highest_margin - self.lowest_margin) / (self.highest_norm - self.lowest_norm)
        margin = self.lowest_margin + slope * (self._clipped_norm(context) - self.lowest_norm)
        return add_angle(cosine, margin, "monotone")

    def penalty(self, context: Context) -> Tensor:
        norm = self._clipped_norm(context)
        return self.penalty_weight * (1 / norm + norm / self.highest_norm**2)
