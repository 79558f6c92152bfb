"""SphereFace-R: a multiplicative margin that needs no annealing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from margrave.losses.angles import arccosine
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("sphereface_r")
@dataclass(frozen=True, kw_only=True)
class SphereFaceR(Loss):
    """A multiplicative angular margin on the target, or its counterpart on the negatives.

    Target (v1): T = cos(min(m·θ_y, π)), N_j = cosθ_j. Negatives (v2): T = cosθ_y,
    N_j = cos(θ_j / m). The paper ignores the margin in the target's gradient (characteristic
    gradient detachment); set `straight_through` to do the same.

    Source: SphereFace Revived, arXiv 2109.05565, section 4, with hard feature normalization
    (s = 30, m = 1.5).

    Attributes:
        margin: m, at least 1.
        side: the cosines to modify, ``target`` (v1) or ``negatives`` (v2).

    >>> import torch
    >>> SphereFaceR(margin=2).target(torch.tensor([0.0, -0.5]), Context())
    tensor([-1., -1.])
    """

    scale: float = 30.0
    margin: float = 1.5
    side: Literal["target", "negatives"] = "target"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", self.margin >= 1, "at least 1")
        self.require("side", self.side in ("target", "negatives"), "target or negatives")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        if self.side == "negatives":
            return cosine
        return (self.margin * arccosine(cosine)).clamp_max(math.pi).cos()

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, None] | None:
        del target_cosine, context
        # Cosines that are not modified have slope 1; for v2, heads use autograd.
        return (cosines, None) if self.side == "target" else None

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        del target_cosine, context
        if self.side == "target":
            return cosines
        return (arccosine(cosines) / self.margin).cos()
