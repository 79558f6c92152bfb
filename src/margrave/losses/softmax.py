"""Plain softmax: no margin, no normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from margrave.losses.contract import LOSSES, Loss


@LOSSES.register("softmax")
@dataclass(frozen=True, kw_only=True)
class Softmax(Loss):
    """Cross-entropy over W_jᵀx + b_j.

    T = W_yᵀx + b_y, N_j = W_jᵀx + b_j: the head hands inner products instead of cosines.

    Source: the baseline of every paper here; `torch.nn.functional.cross_entropy` of a linear layer.

    >>> Softmax().scale
    1.0
    """

    normalized: ClassVar[bool] = False

    scale: float = 1.0
