"""AdaFace: the margin adapts to image quality, estimated by the feature norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from margrave.losses.angles import arccosine
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("adaface")
@dataclass(frozen=True, kw_only=True)
class AdaFace(Loss):
    """Large margins for high-quality images, small margins for low-quality images.

    ẑ = clip( h·(‖z‖ − μ)/(σ + ε), −1, 1 ), where ‖z‖ is the feature norm, clipped to [0.001, 100]
    and without gradient. T = cos( clip(θ_y − m·ẑ, ε, π − ε) ) − (m + m·ẑ), N_j = cosθ_j. Thus
    ẑ = −1 gives ArcFace, 0 gives CosFace, and +1 an angular margin of −m and a cosine margin of 2m.
    All cosines are clamped to ±(1 − ε). μ and σ are the running mean and standard deviation of the
    clipped norms, updated before use.

    Source: AdaFace, CVPR 2022, arXiv 2204.00964, equations 12 to 14; mk-minchul/AdaFace
    ``head.py`` (t_alpha there is `norm_update_weight` here; the paper's α = 0.99 is the weight of
    the old value).

    Attributes:
        margin: m, the base margin, of the angle (in radians) and of the cosine; 0 ≤ m < π.
        concentration: h, how strongly the norm changes the margin.
        norm_update_weight: weight of the new batch in μ and σ, in (0, 1].
        norm_start: initial μ and σ: ``official`` (20 and 100, with which the margin hardly adapts
            for hundreds of steps), ``first_batch``, or ``bias_corrected``; see
            `margrave.statistics.FeatureNorm`.
        epsilon: ε in the formulas above.

    >>> import torch
    >>> one, ten = torch.tensor(1.0), torch.tensor(10.0)
    >>> context = Context(feature_norm=ten, feature_norm_mean=ten, feature_norm_std=one)
    >>> round(AdaFace().target(torch.tensor([0.5]), context).item(), 4)
    0.1
    """

    margin: float = 0.4
    concentration: float = 0.333
    norm_update_weight: float = 0.01
    norm_start: Literal["official", "first_batch", "bias_corrected"] = "official"
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")
        self.require("concentration", self.concentration >= 0, "at least 0")
        self.require("norm_update_weight", 0 < self.norm_update_weight <= 1, "in (0, 1]")
        self.require("epsilon", 0 < self.epsilon < 0.1, "in (0, 0.1)")

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        settings = {"update_weight": self.norm_update_weight, "start": self.norm_start}
        return {"feature_norm": settings}

    def quality(self, context: Context) -> Tensor:
        """(B,) ẑ, the image quality in [−1, 1], estimated by the feature norm."""
        import torch

        norm = context["feature_norm"].detach().clamp(0.001, 100)
        limits = torch.finfo(norm.dtype)
        # If all norms are equal and epsilon rounds to 0 in this dtype, the quotient would be 0 / 0.
        std = context["feature_norm_std"] + max(self.epsilon, limits.tiny)
        standardized = (norm - context["feature_norm_mean"]) / std
        # Keep the quotient finite, because a concentration of 0 times infinity is NaN. Any large
        # finite limit would do.
        standardized = standardized.clamp(-(limits.max**0.5), limits.max**0.5)
        return (self.concentration * standardized).clamp(-1, 1)

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        quality = self.quality(context)
        angle = arccosine(cosine, self.epsilon) - self.margin * quality
        additive = self.margin + self.margin * quality
        return angle.clamp(self.epsilon, math.pi - self.epsilon).cos() - additive

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del target_cosine, context
        return cosines.clamp(self.epsilon - 1, 1 - self.epsilon)

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        # The slope of the clamp is 1 inside and 0 outside; le_ keeps the dtype of the cosines.
        slope = cosines.abs().le_(1 - self.epsilon)
        return self.negatives(cosines, target_cosine, context), slope
