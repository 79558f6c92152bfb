"""Errors of demographic groups at one threshold."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.evaluation import PairScores, group_errors, inequality


def pairs(genuine: np.ndarray, impostors: np.ndarray) -> PairScores:
    cosine = np.concatenate([genuine, impostors])
    same = np.arange(len(cosine)) < len(genuine)
    distances = tuple((2 - 2 * cosine).tolist())
    return PairScores(distances=distances, same=tuple(same.tolist()), folds=2)


def test_all_groups_are_measured_at_one_threshold() -> None:
    generator = np.random.default_rng(0)
    easy = pairs(generator.normal(0.8, 0.1, 500), generator.normal(0.0, 0.1, 500))
    hard = pairs(generator.normal(0.5, 0.1, 500), generator.normal(0.3, 0.1, 500))
    threshold, (first, second) = group_errors({"easy": easy, "hard": hard}, far=0.01)
    cosine = 1 - np.array(hard.distances) / 2
    assert second.fmr == (cosine[500:] > threshold).mean()
    assert second.fnmr == (cosine[:500] <= threshold).mean()
    # One per cent over both groups: all of it comes from the hard one.
    assert (first.fmr + second.fmr) / 2 == pytest.approx(0.01)
    assert first.fmr == 0 and first.fmr_interval == (0, pytest.approx(0.0073, abs=1e-4))
    assert second.fmr_interval[0] < second.fmr < second.fmr_interval[1]
    index = inequality((first, second))
    assert index.fmr_ratio is None
    assert index.fdr < 1 and index.garbe > 0


def test_equal_groups_are_equal() -> None:
    generator = np.random.default_rng(1)
    one = pairs(generator.normal(0.5, 0.2, 100), generator.normal(0.2, 0.2, 100))
    _, rows = group_errors({"a": one, "b": one, "c": one}, far=0.05)
    index = inequality(rows)
    assert (index.fdr, index.garbe) == (1, 0)
    assert index.fmr_ratio == pytest.approx(1) and index.fnmr_ratio == pytest.approx(1)


def test_groups_that_cannot_be_compared_are_refused() -> None:
    one = pairs(np.array([0.9, 0.8]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="at least two"):
        group_errors({"a": one}, far=0.5)
    genuine = PairScores(distances=(0.1, 0.2), same=(True, True), folds=2)
    with pytest.raises(ValueError, match="'b' lacks"):
        group_errors({"a": one, "b": genuine}, far=0.5)
