"""The running mean and standard deviation of the feature norm: AdaFace's μ and σ."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from margrave.distributed import all_reduce_sum
from margrave.statistics.contract import STATISTICS, Observation, Statistic, StatisticSpec


@STATISTICS.register("feature_norm")
class FeatureNorm(Statistic):
    """Running μ and unbiased σ of ‖x‖ clipped to [0.001, 100], over the batch of all ranks.

    μ ← weight·batch mean + (1 − weight)·μ, and σ likewise. A batch of a single sample is skipped,
    because it has no standard deviation. A batch with a NaN norm is skipped too, as mixed precision
    usually skips its optimizer step.

    Args:
        spec: the ranks to synchronize with.
        update_weight: weight of the new batch, in (0, 1].
        start: ``official`` starts at μ = 20, σ = 100; ``first_batch`` starts at the first batch's
            values; ``bias_corrected`` starts at 0 and corrects the bias as Adam does.

    Source: AdaFace, arXiv 2204.00964, section 3.3; mk-minchul/AdaFace ``head.py``, where a batch of
    one turns σ into NaN permanently.
    """

    mean: Tensor
    deviation: Tensor
    updates: Tensor

    def __init__(
        self,
        spec: StatisticSpec,
        *,
        update_weight: float,
        start: Literal["official", "first_batch", "bias_corrected"],
    ) -> None:
        super().__init__(spec)
        self.update_weight = update_weight
        self.start = start
        # Only `official` uses these values: with the other starts, the first update gets weight 1
        # and so replaces them (`bias_corrected` is then the same as starting at 0).
        self.register_buffer("mean", torch.tensor(20.0))
        # σ is named `deviation` because checkpoints and metrics of version 0.1 use this name.
        self.register_buffer("deviation", torch.tensor(100.0))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        norm = observation.feature_norm.clamp(0.001, 100)
        world = self.spec.batch_world
        sums = torch.stack([norm.sum(), norm.new_full((), norm.numel())])
        total, count = all_reduce_sum(sums, world).unbind()
        batch_mean = total / count
        squares = all_reduce_sum((norm - batch_mean).square().sum(), world)
        batch_std = (squares / (count - 1).clamp_min(1)).sqrt()

        weight = self._effective_weight()
        valid = (count > 1) & torch.isfinite(batch_std)
        for running, new in ((self.mean, batch_mean), (self.deviation, batch_std)):
            updated = torch.lerp(running, new.to(running), weight)
            running.copy_(torch.where(valid, updated, running))
        self.updates += valid

    def _effective_weight(self) -> Tensor:
        """The weight of the new batch, including the correction that `start` requires."""
        weight = torch.full_like(self.mean, self.update_weight)
        if self.start == "official":
            return weight
        if self.start == "bias_corrected":
            weight = weight / (1 - (1 - weight) ** (self.updates + 1))
        return torch.where(self.updates == 0, 1.0, weight)

    def context(self, observation: Observation) -> dict[str, Tensor]:
        return {
            "feature_norm_mean": self.mean.to(observation.feature_norm, copy=True),
            "feature_norm_std": self.deviation.to(observation.feature_norm, copy=True),
        }
