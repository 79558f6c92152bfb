"""ElasticFace: the margin is drawn anew for each sample in each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from margrave.losses.angles import add_angle
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("elasticface")
@dataclass(frozen=True, kw_only=True)
class ElasticFace(Loss):
    """ArcFace's or CosFace's margin, drawn from a normal distribution for each sample.

    m_i = margin + margin_std·ε_i with ε_i ~ N(0, 1), in evaluation mode m_i = margin. Angular:
    T = cos(θ_y + m_i), made monotone beyond π; cosine: T = cosθ_y − m_i. N_j = cosθ_j. With
    ``sort_margins`` (ElasticFace+), the margins drawn for a batch are assigned by difficulty: the
    sample with the smallest cosθ_y gets the largest margin.

    Source: ElasticFace, arXiv 2109.09416, equations 5 to 8 and section 3.3. The authors' code has
    a non-commercial license, so it was not used; that code assigns the sorted margins in reverse.

    Attributes:
        base: ``angular`` (ElasticFace-Arc) or ``cosine`` (ElasticFace-Cos).
        margin: the mean margin; None uses the paper's, 0.5 radians (angular) or 0.35 (cosine).
        margin_std: the standard deviation of the margins, in the unit of `margin`, at least 0.
        sort_margins: assign the margins by difficulty (ElasticFace+).

    >>> import torch
    >>> context = Context(margin_noise=torch.tensor([0.0, 2.0]))
    >>> loss = ElasticFace(base="cosine", margin_std=0.1)
    >>> loss.target(torch.tensor([0.9, 0.9]), context)
    tensor([0.5500, 0.3500])
    """

    base: Literal["angular", "cosine"] = "angular"
    margin: float | None = None
    margin_std: float = 0.05
    sort_margins: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("base", self.base in ("angular", "cosine"), "angular or cosine")
        self.require("margin", 0 <= self.mean_margin < 2, "in [0, 2)")
        self.require("margin_std", self.margin_std >= 0, "at least 0")

    @property
    def mean_margin(self) -> float:
        """The mean margin: `margin`, or the paper's value if that is None."""
        if self.margin is not None:
            return self.margin
        return 0.5 if self.base == "angular" else 0.35

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        return {"margin_noise": {"sort": self.sort_margins}}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        margins = self.mean_margin + self.margin_std * context["margin_noise"]
        if self.base == "cosine":
            return cosine - margins
        # With a margin outside [0, π), cos(θ + m) would increase with θ. The paper's standard
        # deviation is too small to give such margins.
        return add_angle(cosine, margins.clamp(0, 0.99 * math.pi), "monotone")
