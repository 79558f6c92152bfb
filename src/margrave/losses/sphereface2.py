"""SphereFace2: binary classification per class instead of a softmax over classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.contract import LOSSES, Context, Loss, SigmoidTerms

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("sphereface2")
@dataclass(frozen=True, kw_only=True)
class SphereFace2(Loss):
    """A sigmoid per class with a margin on both sides and a learned bias b.

    L = w/s·( λ·log(1 + e^{−(s·T + b)}) + (1 − λ)·Σ_{j≠y} log(1 + e^{s·N_j + b}) ), with
    T = g(cosθ_y) − m, N_j = g(cosθ_j) + m and g(z) = 2·((z + 1)/2)^t − 1, which spreads
    the usual cosines over more of [−1, 1]. The initial b balances the gradients of target and
    negatives at cosine 0. With `straight_through`, dT/d cosθ_y and dN_j/d cosθ_j are 1, as in the
    authors' code.

    Source: SphereFace2, ICLR 2022, equations 5 and 7 (SphereFace2-C); ydwen/opensphere
    ``head/sphereface2.py``.

    Attributes:
        scale: s, the paper's r.
        margin: m, subtracted from g(cosθ_y) and added to g(cosθ_j), 0 ≤ m < 1.
        target_share: λ in (0, 1), the weight of the target relative to the negatives.
        sharpness: t, the exponent in g, at least 1; with 1, g(z) = z.
        loss_weight: w, above 0; the paper has 1, the authors' code 50.

    >>> import torch
    >>> SphereFace2().negatives(torch.tensor([[-1.0, 0.0, 1.0]]), torch.tensor([0.0]), Context())
    tensor([[-0.6000, -0.3500,  1.4000]])
    """

    scale: float = 40.0
    margin: float = 0.4
    target_share: float = 0.7
    sharpness: float = 3.0
    loss_weight: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < 1, "in [0, 1)")
        self.require("target_share", 0 < self.target_share < 1, "in (0, 1)")
        self.require("sharpness", self.sharpness >= 1, "at least 1")
        self.require("loss_weight", self.loss_weight > 0, "above 0")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        return self._spread(cosine) - self.margin

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del target_cosine, context
        negatives = self._spread(cosines) + self.margin
        return cosines + (negatives - cosines).detach() if self.straight_through else negatives

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        del target_cosine, context
        negatives = self._spread(cosines) + self.margin
        if self.straight_through or self.sharpness == 1:
            return negatives, None
        slope = self.sharpness * _to_unit_interval(cosines) ** (self.sharpness - 1)
        return negatives, slope

    def _spread(self, cosine: Tensor) -> Tensor:
        """g(cosine)."""
        return 2 * _to_unit_interval(cosine) ** self.sharpness - 1

    def sigmoid_terms(self, num_classes: int) -> SigmoidTerms:
        weight = self.loss_weight / self.scale
        return SigmoidTerms(
            target_weight=weight * self.target_share,
            negatives_weight=weight * (1 - self.target_share),
            initial_bias=self._balanced_bias(num_classes),
        )

    def _balanced_bias(self, num_classes: int) -> float:
        """b with q·sigmoid(−(s·T + b)) = sigmoid(s·N + b) at cosine 0, q = λ/((1 − λ)(C − 1))."""
        q = self.target_share / ((1 - self.target_share) * max(num_classes - 1, 1))
        spread_zero = 2 * 0.5**self.sharpness - 1  # g(0)
        target_logit = self.scale * (spread_zero - self.margin)
        negative_logit = self.scale * (spread_zero + self.margin)
        # x = e^b is the positive root of e^{s·T}·x² + (1 − q)·x − q·e^{−s·N} = 0. The
        # quadratic formula has two forms: use the one that adds numbers of the same sign.
        linear = 1 - q
        discriminant_root = math.sqrt(linear**2 + 4 * q * math.exp(target_logit - negative_logit))
        if linear > 0:
            return math.log(2 * q) - negative_logit - math.log(linear + discriminant_root)
        return math.log((discriminant_root - linear) / 2) - target_logit


def _to_unit_interval(cosine: Tensor) -> Tensor:
    """(cosine + 1)/2, clamped to 0 because rounding can make a cosine less than −1."""
    return ((cosine + 1) / 2).clamp_min(0)
