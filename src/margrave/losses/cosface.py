"""CosFace, also known as AM-Softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("cosface")
@dataclass(frozen=True, kw_only=True)
class CosFace(Loss):
    """An additive margin on the target's cosine.

    T = cosθ_y − m, N_j = cosθ_j.

    Source: CosFace, arXiv 1801.09414 (m 0.35, s 64) and AM-Softmax, arXiv 1801.05599; ``CosFace``
    of mk-minchul/AdaFace ``head.py`` (m 0.4), ``AM`` of xiaoboCASIA/SV-X-Softmax ``fc_layers.py``.

    Attributes:
        margin: m, subtracted from the cosine, 0 ≤ m < 2.
        easy_margin: apply the margin only where cosθ_y > 0.

    >>> import torch
    >>> CosFace(margin=0.4).target(torch.tensor([0.9]), Context())
    tensor([0.5000])
    """

    margin: float = 0.35
    easy_margin: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < 2, "in [0, 2)")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        modified = cosine - self.margin
        return modified.where(cosine > 0, cosine) if self.easy_margin else modified
