"""Hard example mining: trains only on the samples of a batch with the largest losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from margrave.losses.angles import BaseMargin, base_margin
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("hard_mining")
@dataclass(frozen=True, kw_only=True)
class HardMining(Loss):
    """Trains on the samples of each batch with the largest losses.

    L = cross entropy · B / k for the k = ⌈keep·B⌉ samples with the largest cross entropy, otherwise
    L = 0; the mean of L over the batch is thus the mean over these k samples. The batch covers all
    ranks; with gradient accumulation, each micro-batch is a batch. If several samples
    tie at the smallest kept cross entropy, they all count, but each only as the same fraction of a
    sample, so that the total is k. T = cosθ_y, cosθ_y − m or cos(θ_y + m), by `base`;
    N_j = cosθ_j.

    Source: Online Hard Example Mining, arXiv 1604.03540, with `keep` = 0.9 from a baseline of
    Support Vector Guided Softmax, arXiv 1812.11317, section 3.

    Attributes:
        keep: fraction of the samples to train on, in (0, 1].
        base: the margin, ``none``, ``cosine`` or ``angular``.
        margin: m, in cosine or radians depending on `base`; unused for base ``none``.

    >>> import torch
    >>> cross_entropy = torch.tensor([1.0, 3.0, 2.0, 4.0])
    >>> HardMining(keep=0.5).modify_cross_entropy(cross_entropy, lambda: cross_entropy)
    tensor([0., 6., 0., 8.])
    """

    keep: float = 0.9
    base: BaseMargin = "none"
    margin: float = 0.35

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("keep", 0 < self.keep <= 1, "in (0, 1]")
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        del context
        return base_margin(cosine, self.margin, self.base)

    def modify_cross_entropy(
        self, cross_entropy: Tensor, gather_cross_entropy: Callable[[], Tensor]
    ) -> Tensor:
        gathered = gather_cross_entropy()
        kept_count = math.ceil(self.keep * len(gathered))
        smallest_kept = gathered.topk(kept_count).values[-1]
        places_for_tied = kept_count - (gathered > smallest_kept).sum()
        tied_weight = (places_for_tied / (gathered == smallest_kept).sum()).to(cross_entropy)
        weight = (cross_entropy > smallest_kept) + tied_weight * (cross_entropy == smallest_kept)
        return cross_entropy * (weight * (len(gathered) / kept_count))
