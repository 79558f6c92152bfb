"""The combined margin of SphereFace, ArcFace and CosFace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from margrave.losses.angles import add_angle, arccosine
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("combined")
@dataclass(frozen=True, kw_only=True)
class Combined(Loss):
    """A multiplicative angular, an additive angular and an additive cosine margin.

    T = cos(m₁·θ_y + m₂) − m₃, N_j = cosθ_j.

    Source: ArcFace, arXiv 1801.07698, equation 4; ``CombinedMarginLoss`` of deepinsight/insightface
    ``arcface_torch/losses.py``, which ignores m₂ if m₃ > 0; this loss applies both.

    Attributes:
        angle_multiplier: m₁ > 0, multiplies the angle.
        angle_margin: m₂, added to the angle, in radians.
        cosine_margin: m₃, subtracted from the cosine.
        beyond_pi: ``none`` (InsightFace) or ``clip``, see `margrave.losses.angles.add_angle`.

    >>> import torch
    >>> loss = Combined(angle_multiplier=1.0, angle_margin=0.3, cosine_margin=0.2)
    >>> round(loss.target(torch.tensor([0.0]), Context()).item(), 4)
    -0.4955
    """

    angle_multiplier: float = 1.0
    angle_margin: float = 0.5
    cosine_margin: float = 0.0
    beyond_pi: Literal["clip", "none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("angle_multiplier", self.angle_multiplier > 0, "above 0")
        self.require("angle_margin", 0 <= self.angle_margin < math.pi, "in [0, π)")
        self.require("cosine_margin", 0 <= self.cosine_margin < 2, "in [0, 2)")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        if self.angle_multiplier == 1:
            rotated = add_angle(cosine, self.angle_margin, self.beyond_pi)
        else:
            angle = self.angle_multiplier * arccosine(cosine) + self.angle_margin
            # The angle is above 0, because arccosine clamps the cosine; so only π limits it.
            rotated = (angle.clamp_max(math.pi) if self.beyond_pi == "clip" else angle).cos()
        return rotated - self.cosine_margin
