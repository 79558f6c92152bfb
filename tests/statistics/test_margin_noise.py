"""Margins' random numbers: reproducible, equal on all ranks, sorted by difficulty where asked."""

from __future__ import annotations

import copy

import torch

from margrave.distributed import World
from margrave.statistics import MarginNoise, Observation, StatisticSpec


def made(sort: bool = False, rank: int = 0, size: int = 1) -> MarginNoise:
    torch.manual_seed(0)
    world = World(rank=rank, size=size)
    spec = StatisticSpec(num_classes=9, embedding_size=2, batch_world=world)
    return MarginNoise(spec, sort=sort)


def observation(count: int) -> Observation:
    values = torch.linspace(-1, 1, count).roll(count // 3)
    labels = torch.zeros(count, dtype=torch.int64)
    return Observation(
        unit_embeddings=torch.zeros(count, 2),
        feature_norm=values,
        target_cosine=values,
        labels=labels,
    )


def draw(statistic: MarginNoise, count: int = 4000) -> torch.Tensor:
    return statistic.context(observation(count))["margin_noise"]


def test_numbers_are_standard_normal_and_new_in_each_step() -> None:
    statistic = made()
    first = draw(statistic)
    assert abs(first.mean()) < 0.06 and abs(first.std() - 1) < 0.04
    # Asked again, as when a step is recomputed, it answers the same.
    assert draw(statistic).equal(first)
    statistic.update(observation(4))
    assert not draw(statistic).equal(first)
    assert not draw(statistic.eval()).any()


def test_a_copy_goes_on_with_the_same_numbers() -> None:
    statistic = made()
    statistic.update(observation(4))
    again = MarginNoise(statistic.spec)
    again.load_state_dict(copy.deepcopy(statistic.state_dict()))
    assert draw(again).equal(draw(statistic))
    # Ranks that share a batch agree; those with batches of their own draw their own.
    assert draw(made()).equal(draw(made()))
    assert not draw(made(rank=1, size=2)).equal(draw(made(rank=0, size=2)))


def test_the_hardest_sample_gets_the_largest_number() -> None:
    plain, ordered = draw(made()), draw(made(sort=True))
    cosine = observation(4000).target_cosine
    assert ordered.sort().values.equal(plain.sort().values)
    assert (ordered[cosine.argsort()].diff() <= 0).all()
