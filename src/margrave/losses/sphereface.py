"""SphereFace: a multiplicative margin on the target's angle, increased during training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from margrave.losses.angles import arccosine
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("sphereface")
@dataclass(frozen=True, kw_only=True)
class SphereFace(Loss):
    """A multiplicative angular margin, blended with the plain cosine, whose weight λ decays.

    T = [λ·cosθ_y + ψ(θ_y)] / (1 + λ), ψ(θ) = (−1)^k cos(mθ) − 2k for θ in [kπ/m, (k+1)π/m],
    N_j = cosθ_j. λ = max(minimum, start·(1 + decay·iteration)^−power), where the four constants are
    the settings ``plain_weight_…``.

    Source: SphereFace, arXiv 1704.08063; schedule and s = 32 from ``SphereFace`` of
    xiaoboCASIA/SV-X-Softmax ``fc_layers.py``, which also normalizes features.

    Attributes:
        margin: m, an integer from 1 to 5.
        plain_weight_start: initial λ, the weight of the plain cosine.
        plain_weight_minimum: minimum λ.
        plain_weight_decay: decay rate of λ per iteration.
        plain_weight_power: exponent of the decay.

    >>> import torch
    >>> context = Context(iteration=torch.tensor(10**9))
    >>> SphereFace(plain_weight_minimum=0).target(torch.tensor([1.0, -1.0]), context).round()
    tensor([ 1., -7.])
    """

    scale: float = 32.0
    margin: int = 4
    plain_weight_start: float = 1000.0
    plain_weight_minimum: float = 5.0
    plain_weight_decay: float = 1e-4
    plain_weight_power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", self.margin in (1, 2, 3, 4, 5), "an integer from 1 to 5")
        for suffix in ("start", "minimum", "decay", "power"):
            name = f"plain_weight_{suffix}"
            self.require(name, getattr(self, name) >= 0, "at least 0")

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        return {"iteration": {}}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        decayed = (1 + self.plain_weight_decay * context["iteration"]) ** -self.plain_weight_power
        plain_weight = (self.plain_weight_start * decayed).clamp_min(self.plain_weight_minimum)
        # k, the index of the interval [kπ/m, (k+1)π/m] that contains the angle, at most m − 1.
        interval = (self.margin * arccosine(cosine.detach()) / math.pi).floor()
        interval = interval.clamp_max(self.margin - 1)
        sign = 1 - 2 * (interval % 2)
        psi = sign * self._cosine_of_multiple(cosine) - 2 * interval
        return (plain_weight * cosine + psi) / (1 + plain_weight)

    def _cosine_of_multiple(self, cosine: Tensor) -> Tensor:
        """cos(mθ) by the Chebyshev recurrence, whose gradient is finite at cosθ = ±1 too."""
        previous, current = cosine.new_ones(cosine.shape), cosine
        for _ in range(self.margin - 1):
            previous, current = current, 2 * cosine * current - previous
        return current
