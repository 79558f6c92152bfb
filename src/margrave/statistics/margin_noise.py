"""Random numbers for margins that are drawn anew in each step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from margrave.statistics.contract import STATISTICS, Observation, Statistic, StatisticSpec

GOLDEN = -0x61C8864680B583EB
"""SplitMix64's increment, 2^64 / φ as int64: its multiples are spread over all 64-bit values."""


@STATISTICS.register("margin_noise")
class MarginNoise(Statistic):
    """A standard normal number for each sample, equal on all ranks that see the sample.

    The numbers depend only on the stored seed, the count of batches and the sample's position in
    the batch of all ranks, so activation checkpointing and resumed runs draw the same ones again.
    In evaluation they are 0.

    Args:
        spec: the ranks whose samples form a batch.
        sort: among the samples that this rank sees, give the largest numbers to those with the
            smallest target cosines.

    Source: ElasticFace, arXiv 2109.09416, sections 3.2 and 3.3.
    """

    per_step = False

    seed: Tensor
    count: Tensor

    def __init__(self, spec: StatisticSpec, *, sort: bool = False) -> None:
        super().__init__(spec)
        self.sort = sort
        # Ranks with the same torch seed draw the same number, as they do for the class centers.
        self.register_buffer("seed", torch.randint(2**31, (), device="cpu"))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        del observation
        self.count += 1

    def context(self, observation: Observation) -> dict[str, Tensor]:
        cosine = observation.target_cosine
        if not self.training:
            return {"margin_noise": torch.zeros_like(cosine)}
        # Number the samples of all ranks, so that no two get the same noise.
        world = self.spec.batch_world
        position = torch.arange(len(cosine), device=cosine.device) * world.size + world.rank
        noise = _normal(_mixed(_mixed(self.seed + self.count * GOLDEN) + position), cosine)
        if self.sort:
            hardest_first = cosine.argsort(stable=True)
            noise = torch.empty_like(noise).index_copy_(
                0, hardest_first, noise.sort(descending=True).values
            )
        return {"margin_noise": noise}


def _mixed(value: Tensor) -> Tensor:
    """SplitMix64's finalizer: each bit of the result depends on all bits of the value.

    A torch generator is not used, because seeding it needs the count on the CPU, so each step would
    wait for the GPU.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        value = (value ^ _shifted(value, shift)) * factor
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """A logical right shift; int64's operator >> copies the sign bit, so mask the copies out."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _normal(bits: Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers in the dtype of `like`, from the upper 24 of 64 random bits."""
    # Computed at least in float32, because half precision cannot hold 24 bits.
    uniform = (_shifted(bits, 40).to(torch.promote_types(like.dtype, torch.float32)) + 0.5) / 2**24
    return (torch.erfinv(2 * uniform - 1) * math.sqrt(2)).to(like.dtype)
