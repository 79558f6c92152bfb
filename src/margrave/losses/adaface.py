"""AdaFace: the margin follows image quality, read from the feature norm."""

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
    """A large margin for images of high quality, a forgiving one for images of low quality.

    ẑ = clip( h·(‖z‖ − μ)/(σ + ε), −1, 1 ), ‖z‖ clipped to [0.001, 100] and without gradient;
    T = cos( clip(θ_y − m·ẑ, ε, π − ε) ) − (m + m·ẑ), N_j = cosθ_j. So ẑ = −1 is ArcFace-like,
    0 CosFace-like, +1 a negative angular margin with a shift. All cosines are clamped to ±(1 − ε).
    μ and σ are running statistics of the batch's norms, updated before use.

    Source: AdaFace, CVPR 2022, arXiv 2204.00964, equations 12 to 14; mk-minchul/AdaFace
    ``head.py`` (its t_alpha is `norm_update_weight`; the paper's α = 0.99 is the weight of the old
    value).

    Attributes:
        margin: m.
        concentration: h, how strongly the norm moves the margin.
        norm_update_weight: weight of the new batch in μ and σ, in (0, 1].
        norm_start: how μ and σ begin: ``official`` at 20 and 100, under which the margin hardly
            adapts for hundreds of steps; ``first_batch``; or ``bias_corrected``.
        epsilon: ε of every clip above.

    >>> import torch
    >>> one, ten = torch.tensor(1.0), torch.tensor(10.0)
    >>> context = Context(feature_norm=ten, feature_norm_mean=ten, feature_norm_deviation=one)
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
        """ẑ (B,): image quality in [−1, 1] as the feature norm tells it."""
        import torch

        norm = context["feature_norm"].detach().clamp(0.001, 100)
        numbers = torch.finfo(norm.dtype)
        # Equal norms and an epsilon below the dtype's range would divide 0 by 0.
        deviation = context["feature_norm_deviation"] + max(self.epsilon, numbers.tiny)
        standardised = (norm - context["feature_norm_mean"]) / deviation
        # Far beyond what the next clip leaves, but finite: a concentration may be 0.
        standardised = standardised.clamp(-(numbers.max**0.5), numbers.max**0.5)
        return (self.concentration * standardised).clamp(-1, 1)

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
        return self.negatives(cosines, target_cosine, context), cosines.abs().le_(1 - self.epsilon)
