"""The validated batch that a head's methods receive."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from margrave.losses import Context
from margrave.statistics import Observation


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A validated batch inside a head, in the head's dtype.

    B is the number of this rank's samples. A is the number of samples of all ranks that the classes
    are sharded over; A = B in a head that is not sharded. D is the number of features.

    Attributes:
        unit: (B, D) normalized embeddings x̂.
        norm: (B,) embedding norms ‖x‖.
        labels: (B,) class index of each sample, among the classes of all ranks.
        target_cosine: (B,) cosθ_y, or W_yᵀx + b_y for a loss of inner products; without gradient.
        context: the loss's context for the B samples; its feature norms have a gradient.
        gathered: the A samples, without gradient.
        gathered_context: the loss's context for the A samples, without gradient.
        sizes: number of samples of each rank.
        rank_rows: this rank's slice of the A samples.
    """

    unit: Tensor
    norm: Tensor
    labels: Tensor
    target_cosine: Tensor
    context: Context
    gathered: Observation
    gathered_context: Context
    sizes: tuple[int, ...]
    rank_rows: slice
