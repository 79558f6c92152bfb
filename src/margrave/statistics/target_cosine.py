"""The running mean of the target cosine: CurricularFace's t."""

from __future__ import annotations

import torch
from torch import Tensor

from margrave.distributed import all_reduce_sum
from margrave.statistics.contract import STATISTICS, Observation, Statistic, StatisticSpec


@STATISTICS.register("target_cosine")
class TargetCosine(Statistic):
    """t ← (1 − momentum)·mean(cosθ_y) + momentum·t over the batch of all ranks, starting at 0.

    Source: CurricularFace, CVPR 2020, equation 11; as in the authors' code, ``momentum`` is the
    weight of the old t.
    """

    mean: Tensor

    def __init__(self, spec: StatisticSpec, *, momentum: float) -> None:
        super().__init__(spec)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(()))

    def update(self, observation: Observation) -> None:
        cosine = observation.target_cosine
        sums = torch.stack([cosine.sum(), cosine.new_full((), cosine.numel())])
        total, count = all_reduce_sum(sums, self.spec.batch_world).unbind()
        batch_mean = (total / count).to(self.mean)
        updated = (1 - self.momentum) * batch_mean + self.momentum * self.mean
        self.mean.copy_(torch.where(torch.isfinite(batch_mean), updated, self.mean))

    def context(self, observation: Observation) -> dict[str, Tensor]:
        # A copy, because the buffer may change in place before the backward pass.
        return {"mean_target_cosine": self.mean.to(observation.target_cosine, copy=True)}
