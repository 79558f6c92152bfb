from __future__ import annotations

import numpy as np
import pytest

from margrave.evaluation import bootstrap_pairs

FOLDS, PEOPLE_PER_FOLD, PAIRS_PER_CLASS = 5, 6, 15


def _simulate(generator: np.random.Generator, person_share: float) -> tuple[np.ndarray, ...]:
    """Distances whose variance is due to the persons by ``person_share``, same, identities."""
    identities = []
    for fold in range(FOLDS):
        alone = generator.integers(PEOPLE_PER_FOLD, size=(PAIRS_PER_CLASS, 1)).repeat(2, 1)
        met = generator.random((PAIRS_PER_CLASS, PEOPLE_PER_FOLD)).argsort(1)[:, :2]
        identities += [alone + fold * PEOPLE_PER_FOLD, met + fold * PEOPLE_PER_FOLD]
    people = np.concatenate(identities)
    same = people[:, 0] == people[:, 1]
    genuine, impostor = generator.standard_normal((2, FOLDS * PEOPLE_PER_FOLD))
    of_person = np.where(same, 2 + genuine[people[:, 0]], impostor[people].sum(1) / np.sqrt(2))
    of_person = np.where(
        same, 2 + (of_person - 2) * person_share**0.5, of_person * person_share**0.5
    )
    noise = generator.standard_normal(len(same)) * (1 - person_share) ** 0.5
    return (2 - 0.35 * (of_person + noise)).clip(0, 3.99), same, people


def _areas(distances: np.ndarray, same: np.ndarray) -> float:
    return float((distances[same][:, None] < distances[~same]).mean())


@pytest.mark.parametrize("person_share", [0.0, 0.5])
def test_intervals_over_identities_cover(person_share: float) -> None:
    generator = np.random.default_rng(0)
    truth = np.mean([_areas(*_simulate(generator, person_share)[:2]) for _ in range(300)])
    covered = 0
    for _ in range(100):
        distances, same, people = _simulate(generator, person_share)
        low, high = bootstrap_pairs(distances, same, FOLDS, people, resamples=150).area_under_roc
        covered += low <= truth <= high
    assert 86 <= covered <= 100


def test_resampling_pairs_is_too_narrow_when_people_matter() -> None:
    distances, same, people = _simulate(np.random.default_rng(1), 0.8)
    over_people = bootstrap_pairs(distances, same, FOLDS, people, resamples=300)
    over_pairs = bootstrap_pairs(distances, same, FOLDS, None, resamples=300)
    assert (over_people.resampled, over_pairs.resampled) == ("identities", "pairs")
    assert np.ptp(over_people.area_under_roc) > 1.3 * np.ptp(over_pairs.area_under_roc)


def test_interval_of_pairs_has_the_width_of_theory() -> None:
    generator = np.random.default_rng(2)
    same = np.tile(np.repeat([True, False], 200), 10)
    distances = generator.normal(np.where(same, 1.0, 2.0), 0.4).clip(0, 4)
    result = bootstrap_pairs(distances, same, far_targets=[0.1], resamples=400)
    beats = distances[same][:, None] < distances[~same]
    delong = np.sqrt((beats.mean(1).var() + beats.mean(0).var()) / 2000)
    assert np.ptp(result.area_under_roc) == pytest.approx(3.92 * delong, rel=0.15)
    # Choosing thresholds adds a little to the binomial width.
    accuracy = np.mean(result.accuracy)
    binomial = np.sqrt(accuracy * (1 - accuracy) / 4000)
    assert 0.9 < np.ptp(result.accuracy) / (3.92 * binomial) < 1.4
    assert len(result.true_accept_rates) == 1


def test_same_seed_same_intervals() -> None:
    distances, same, people = _simulate(np.random.default_rng(3), 0.5)
    result = [bootstrap_pairs(distances, same, FOLDS, people, [0.1], 40, seed=s) for s in (5, 5, 6)]
    assert result[0] == result[1] != result[2]


def test_perfect_separation_of_few_people_is_not_certain() -> None:
    same = np.arange(40) % 2 == 0
    people = np.stack([np.arange(40) // 2, (np.arange(40) // 2 + ~same) % 20], axis=1)
    result = bootstrap_pairs(np.where(same, 0.5, 2.0), same, 10, people, [0.1], 60)
    # Clopper and Pearson's interval of 20 of 20.
    lowest = pytest.approx(0.025 ** (1 / 20))
    assert result.accuracy == result.area_under_roc == (lowest, 1.0)
    assert result.equal_error_rate == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert result.true_accept_rates == ((lowest, 1.0),)


def test_equal_shares_of_every_person_do_not_make_a_rate_certain() -> None:
    same = np.tile([True] * 5 + [False] * 5, 10)
    people = np.stack([np.arange(100) // 10, (np.arange(100) // 10 + ~same) % 10], axis=1)
    # Everybody has one genuine pair of five that no impostor pair is as bad as.
    distances = np.where(same, np.where(np.arange(100) % 5 == 0, 3.0, 0.5), 2.0)
    low, high = bootstrap_pairs(distances, same, 5, people, [0.1], 60).true_accept_rates[0]
    assert low < 0.7 and high > 0.85


def test_mistakes_are_refused() -> None:
    distances, same, people = _simulate(np.random.default_rng(4), 0.5)
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_pairs(distances, same, FOLDS, resamples=1)
    with pytest.raises(ValueError, match="two per pair"):
        bootstrap_pairs(distances, same, FOLDS, people[:, 0])
    with pytest.raises(ValueError, match="same = "):
        bootstrap_pairs(distances, ~same, FOLDS, people)
