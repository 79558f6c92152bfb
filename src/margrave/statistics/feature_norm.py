"""The running mean and deviation of the feature norm: AdaFace's μ and σ."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from margrave.distributed import all_reduce_sum
from margrave.statistics.contract import STATISTICS, Observation, Statistic, Surroundings


@STATISTICS.register("feature_norm")
class FeatureNorm(Statistic):
    """μ and σ of ‖x‖ clipped to [0.001, 100], σ unbiased, over the batch of all ranks.

    μ ← weight·mean + (1 − weight)·μ, σ likewise. A step whose whole batch is one sample has no
    deviation and is passed over, and so is one with norms that are not finite (as mixed-precision
    loops meet and skip).

    Source: AdaFace, arXiv 2204.00964, section 3.3; mk-minchul/AdaFace ``head.py``, where a batch of
    one turns σ into NaN for ever.

    Args:
        surroundings: whom to synchronise with.
        update_weight: weight of the new batch, in (0, 1].
        start: ``official`` starts at μ 20, σ 100; ``first_batch`` takes the first batch's values;
            ``bias_corrected`` divides a sum begun at 0 by the weight it has gathered.
    """

    mean: Tensor
    deviation: Tensor
    updates: Tensor

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        update_weight: float,
        start: Literal["official", "first_batch", "bias_corrected"],
    ) -> None:
        super().__init__(surroundings)
        self.update_weight = update_weight
        self.start = start
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        norm = observation.feature_norm.clamp(0.001, 100)
        world = self.surroundings.batch_world
        sums = torch.stack([norm.sum(), norm.new_full((), norm.numel())])
        total, count = all_reduce_sum(sums, world).unbind()
        batch_mean = total / count
        squares = all_reduce_sum((norm - batch_mean).square().sum(), world)
        batch_deviation = (squares / (count - 1).clamp_min(1)).sqrt()

        weight = self._weight_of_new()
        enough = (count > 1) & torch.isfinite(batch_deviation)
        for running, new in ((self.mean, batch_mean), (self.deviation, batch_deviation)):
            moved = torch.lerp(running, new.to(running), weight)
            running.copy_(torch.where(enough, moved, running))
        self.updates += enough

    def _weight_of_new(self) -> Tensor:
        """The update weight, under which the running value stays the corrected one throughout."""
        weight = torch.full_like(self.mean, self.update_weight)
        if self.start == "official":
            return weight
        if self.start == "bias_corrected":
            weight = weight / (1 - (1 - weight) ** (self.updates + 1))
        return torch.where(self.updates == 0, 1.0, weight)

    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {
            "feature_norm_mean": self.mean.to(observation.feature_norm, copy=True),
            "feature_norm_deviation": self.deviation.to(observation.feature_norm, copy=True),
        }
