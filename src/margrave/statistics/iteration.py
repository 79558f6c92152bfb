"""The number of training steps so far."""

from __future__ import annotations

import torch
from torch import Tensor

from margrave.statistics.contract import STATISTICS, Observation, Statistic, StatisticSpec


@STATISTICS.register("iteration")
class Iteration(Statistic):
    """Counts training steps; the count is part of the state dict.

    The head calls `update` before it computes the loss, so the count includes the current step.
    """

    count: Tensor

    def __init__(self, spec: StatisticSpec) -> None:
        super().__init__(spec)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        del observation
        self.count += 1

    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {"iteration": self.count.to(observation.target_cosine.dtype)}
