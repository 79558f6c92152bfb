"""How many training steps there have been."""

from __future__ import annotations

import torch
from torch import Tensor

from margrave.statistics.contract import STATISTICS, Observation, Statistic, Surroundings


@STATISTICS.register("iteration")
class Iteration(Statistic):
    """A step counter that survives in the state dict; the step under way counts."""

    count: Tensor

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        del observation
        self.count += 1

    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {"iteration": self.count.to(observation.target_cosine.dtype)}
