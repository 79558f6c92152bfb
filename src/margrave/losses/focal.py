"""Focal loss: well-classified samples get less weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.angles import BaseMargin, base_margin
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("focal")
@dataclass(frozen=True, kw_only=True)
class Focal(Loss):
    """Weights each sample's cross entropy by how badly it is classified.

    L = (1 − p)^γ·(−log p), where p is the softmax's probability of the sample's class after the
    margin. T = cosθ_y, cosθ_y − m or cos(θ_y + m), by `base`; N_j = cosθ_j.

    Source: Focal Loss, arXiv 1708.02002, equation 4, without class weights; a baseline of Support
    Vector Guided Softmax, arXiv 1812.11317, section 3.

    Attributes:
        gamma: γ, at least 0; with 0, only the margin remains.
        base: the margin, ``none``, ``cosine`` or ``angular``.
        margin: m, in cosine or radians depending on `base`; unused for base ``none``.

    >>> import torch
    >>> cross_entropy = torch.tensor([0.1, 3.0])
    >>> loss = Focal(gamma=2.0)
    >>> sure, unsure = loss.modify_cross_entropy(cross_entropy, lambda: cross_entropy)
    >>> round(float(sure / 0.1), 3), round(float(unsure / 3.0), 3)
    (0.009, 0.903)
    """

    gamma: float = 2.0
    base: BaseMargin = "none"
    margin: float = 0.35

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("gamma", self.gamma >= 0, "at least 0")
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        return base_margin(cosine, self.margin, self.base)

    def modify_cross_entropy(
        self, cross_entropy: Tensor, gather_cross_entropy: Callable[[], Tensor]
    ) -> Tensor:
        import torch

        del gather_cross_entropy
        # Above 0, because x^γ with γ < 1 has an infinite gradient at 0.
        one_minus_p = (-(-cross_entropy).expm1()).clamp_min(torch.finfo(cross_entropy.dtype).tiny)
        return one_minus_p**self.gamma * cross_entropy
