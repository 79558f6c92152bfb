"""ArcFace: a margin on the target's angle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.angles import BeyondPi, add_angle
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("arcface")
@dataclass(frozen=True, kw_only=True)
class ArcFace(Loss):
    """An additive margin on the target's angle.

    T = cos(θ_y + m), N_j = cosθ_j.

    Source: ArcFace, arXiv 1801.07698; ``ArcFace`` of HuangYG123/CurricularFace ``head/metrics.py``
    (`beyond_pi` monotone), mk-minchul/AdaFace ``head.py`` (clip), deepinsight/insightface
    ``arcface_torch/losses.py`` (none, with `straight_through`).

    Attributes:
        margin: m in radians, 0 ≤ m < π.
        beyond_pi: the rule for θ_y + m > π, see `margrave.losses.angles.add_angle`.
        easy_margin: apply the margin only where cosθ_y > 0.

    >>> import torch
    >>> round(ArcFace(margin=0.5).target(torch.tensor([0.0]), Context()).item(), 4)
    -0.4794
    """

    margin: float = 0.5
    beyond_pi: BeyondPi = "monotone"
    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        modified = add_angle(cosine, self.margin, self.beyond_pi)
        return modified.where(cosine > 0, cosine) if self.easy_margin else modified
