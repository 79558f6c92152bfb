"""AdaFace's running norm statistics."""

from __future__ import annotations

import pytest
import torch

from margrave.statistics import Observation, StatisticSpec
from margrave.statistics.feature_norm import FeatureNorm


def observation(norms: list[float]) -> Observation:
    norm = torch.tensor(norms)
    return Observation(
        unit_embeddings=torch.ones(len(norms), 1),
        feature_norm=norm,
        target_cosine=torch.zeros(len(norms)),
        labels=torch.zeros(len(norms), dtype=torch.int64),
    )


def statistic(start: str, weight: float = 0.1) -> FeatureNorm:
    spec = StatisticSpec(num_classes=1, embedding_size=1)
    return FeatureNorm(spec, update_weight=weight, start=start)  # type: ignore[arg-type]


def test_a_batch_of_one_is_passed_over() -> None:
    norm = statistic("official")
    norm.update(observation([7.0]))
    assert (norm.mean.item(), norm.deviation.item(), norm.updates.item()) == (20, 100, 0)


def test_norms_are_clipped() -> None:
    norm = statistic("first_batch")
    norm.update(observation([0.0, 1e30]))
    assert norm.mean.item() == pytest.approx(50.0005)


def test_official_start_adapts_slowly() -> None:
    """The known weakness: after 100 steps at a true std of 3, σ is still near 38.5."""
    norm = statistic("official", 0.01)
    batch = torch.tensor([17.0, 20.0, 23.0])
    for _ in range(100):
        norm.update(observation(batch.tolist()))
    assert norm.deviation.item() == pytest.approx(3 + 97 * 0.99**100, rel=1e-4)


@pytest.mark.parametrize("start", ["first_batch", "bias_corrected"])
def test_other_starts_are_right_at_once(start: str) -> None:
    norm = statistic(start)
    norm.update(observation([1.0, 2.0, 3.0]))
    assert norm.mean.item() == pytest.approx(2.0)
    assert norm.deviation.item() == pytest.approx(1.0)


def test_bias_correction_equals_dividing_by_the_weight_gathered() -> None:
    norm, weight = statistic("bias_corrected"), 0.1
    means = [5.0, 9.0, 2.0, 7.0]
    total = gathered = 0.0
    for mean in means:
        norm.update(observation([mean - 1, mean + 1]))
        total, gathered = (1 - weight) * total + weight * mean, (1 - weight) * gathered + weight
        assert norm.mean.item() == pytest.approx(total / gathered)
