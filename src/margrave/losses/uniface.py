"""UniFace: every class is accepted or rejected at one learned threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.contract import LOSSES, Context, Loss, SigmoidTerms

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("uniface")
@dataclass(frozen=True, kw_only=True)
class UniFace(Loss):
    """A sigmoid per class with one learned threshold for all samples and classes.

    L = log(1 + e^{−(s·(cosθ_y − m) + b)}) + λ·Σ_{j≠y} log(1 + e^{s·cosθ_j + b}). The head learns b,
    initially −log(10·C); −b/s is the cosine that separates same from different identities. The
    paper's sampling of negatives is the head's `sample_rate`.

    Source: UniFace, ICCV 2023, equations 8 to 10; ``UniFace`` of CVI-SZU/UniFace ``head.py``, which
    writes −b for b and in addition clips the exponents to [−s, s].

    Attributes:
        margin: m, subtracted from the target's cosine, 0 ≤ m < 2.
        negatives_weight: λ, above 0.

    >>> UniFace(negatives_weight=0.5).sigmoid_terms(num_classes=1000).initial_bias
    -9.210340371976184
    """

    margin: float = 0.4
    negatives_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < 2, "in [0, 2)")
        self.require("negatives_weight", self.negatives_weight > 0, "above 0")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        return cosine - self.margin

    def sigmoid_terms(self, num_classes: int) -> SigmoidTerms:
        return SigmoidTerms(
            target_weight=1.0,
            negatives_weight=self.negatives_weight,
            initial_bias=-math.log(10 * num_classes),
        )
