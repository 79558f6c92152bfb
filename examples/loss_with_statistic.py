"""A loss with a statistic of your own: ``margrave train --loss loss_with_statistic:SpreadFace``."""

from dataclasses import dataclass

import torch

from margrave.distributed import all_reduce_sum
from margrave.losses import Context, Loss
from margrave.statistics import Observation, Statistic, StatisticSpec


class CosineSpread(Statistic):
    """A running std of cosθ_y over the batch of all ranks."""

    def __init__(self, spec: StatisticSpec) -> None:
        super().__init__(spec)
        self.std = torch.nn.Buffer(torch.zeros(()))

    def update(self, observation: Observation) -> None:
        sums = torch.stack([observation.target_cosine**n for n in (0, 1, 2)]).sum(dim=1)
        count, total, squares = all_reduce_sum(sums, self.spec.batch_world)
        variance = (squares / count - (total / count).square()).clamp_min(0)
        self.std.lerp_(variance.sqrt().to(self.std), 0.01)

    def context(self, observation: Observation) -> dict[str, torch.Tensor]:
        return {"cosine_spread": self.std.to(observation.target_cosine, copy=True)}


@dataclass(frozen=True, kw_only=True)
class SpreadFace(Loss):
    """CosFace whose margin grows with the spread of the target cosines: T = cosθ − m·σ."""

    margin: float = 2.0

    @property
    def needs(self) -> dict[str, dict[str, float]]:
        return {f"{__name__}:CosineSpread": {}}

    def target(self, cosine: torch.Tensor, context: Context) -> torch.Tensor:
        return cosine - self.margin * context["cosine_spread"]
