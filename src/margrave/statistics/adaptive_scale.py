"""The scale that AdaCos adapts in every step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margrave.distributed import gather_rows, gather_sizes
from margrave.statistics.contract import STATISTICS, Observation, Statistic, StatisticSpec


@STATISTICS.register("adaptive_scale")
class AdaptiveScale(Statistic):
    """s ← log B_avg / cos(min(π/4, θ_med)) over the batch of all ranks, starting at √2·log(C − 1).

    B_avg = mean_i Σ_{j≠y} e^{s·cosθ_ij} with the previous s, and θ_med is the median of the angles
    θ_y. With class sampling, the sum is over the sampled classes. A step in which B_avg is at most
    1 or not finite does not change s.

    Args:
        spec: the number of classes, at least 3, and the ranks whose samples form a batch.

    Raises:
        ValueError: there are fewer than 3 classes, with which the initial scale would be 0.

    Source: AdaCos, CVPR 2019, arXiv 1905.00292, equations 12 and 15 and algorithm 1.
    """

    scale: Tensor

    def __init__(self, spec: StatisticSpec) -> None:
        super().__init__(spec)
        if spec.num_classes < 3:
            raise ValueError(
                f"num_classes = {spec.num_classes}: the adaptive scale needs at least 3 classes; "
                "choose the loss normface and set its scale"
            )
        initial = math.sqrt(2) * math.log(spec.num_classes - 1)
        self.register_buffer("scale", torch.tensor(initial))

    def update(self, observation: Observation) -> None:
        log_sums = observation.log_sum_exp_of_negatives(self.scale)
        world = self.spec.batch_world
        rank_values = torch.stack([log_sums, observation.target_cosine.to(log_sums)], dim=1)
        sizes = gather_sizes(len(rank_values), world, rank_values.device)
        log_sums, target_cosine = gather_rows(rank_values, sizes, world).unbind(dim=1)
        log_mean = torch.logsumexp(log_sums, dim=0) - math.log(len(log_sums))
        median = target_cosine.clamp(-1, 1).acos().median()
        scale = log_mean / median.clamp(max=math.pi / 4).cos()
        # The new scale is above 0 only if B_avg is above 1.
        valid = torch.isfinite(scale) & (scale > 0)
        self.scale.copy_(torch.where(valid, scale.to(self.scale), self.scale))

    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {"adaptive_scale": self.scale.to(observation.target_cosine, copy=True)}
