"""Intervals from the tail alone: they cover, and identities matter."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.evaluation import (
    TailIdentities,
    accept_rates,
    bootstrap_rates,
    compare_pairs,
    evaluate_all_to_all,
    evaluate_open_set,
)
from margrave.evaluation.rate_intervals import effective_identities
from margrave.evaluation.tail_bootstrap import small_sample_factor

PEOPLE, IMAGES = 60, 3


def _sample(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Faces of people some of whom are harder than others."""
    centers = generator.standard_normal((PEOPLE, 10)).repeat(IMAGES, axis=0)
    noise = 0.75 * np.exp(0.5 * generator.standard_normal(PEOPLE)).repeat(IMAGES)[:, None]
    faces = centers + noise * generator.standard_normal(centers.shape)
    return faces, np.arange(PEOPLE * IMAGES) // IMAGES


def _judge(seed: int, resamples: int) -> list:
    faces, people = _sample(np.random.default_rng(seed))
    verified = evaluate_all_to_all(faces, people, far_targets=[0.05], resamples=resamples)
    first = np.arange(len(faces)) % IMAGES == 0
    enrolled = first & (people < PEOPLE // 2)
    searched = evaluate_open_set(
        faces[~first],
        people[~first],
        faces[enrolled],
        people[enrolled],
        fpir_targets=[0.1],
        ranks=[1],
        resamples=resamples,
    )
    return [verified.verification[0], searched.rates[0], searched.ranks[0]]


def _figure(result: object) -> float:
    return float(next(getattr(result, n) for n in ("tar", "tpir", "rate") if hasattr(result, n)))


def test_intervals_cover() -> None:
    truth = np.mean([[_figure(each) for each in _judge(seed, 0)] for seed in range(100)], axis=0)
    covered = np.zeros(3)
    for seed in range(1000, 1040):
        for which, each in enumerate(_judge(seed, 100)):
            low, high = each.interval
            covered[which] += low <= truth[which] <= high
    # 93 to 97 % on average (benchmarks/coverage.py); 32 of 40 trials is four std away.
    assert (covered >= 32).all(), covered


def test_people_with_many_images_widen_intervals() -> None:
    generator = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 50)
    genuine = 2 + generator.standard_normal(20)[person] + 0.1 * generator.standard_normal(1000)
    tail = np.sort(generator.standard_normal(400) + 1)[::-1]
    identities = TailIdentities(person, generator.integers(0, 20, (400, 2)), np.full(20, 50))
    widths = []
    for known in (None, identities):
        rate = accept_rates(genuine, tail, 4000, [0.02], identities=known, resamples=300)[0]
        assert rate.interval is not None and rate.interval[0] < rate.tar < rate.interval[1]
        widths.append(np.ptp(rate.interval))
    assert widths[1] > 1.5 * widths[0]
    hits = (genuine > 2)[:, None]
    one, other = (np.ptp(bootstrap_rates(hits, who)[0]) for who in (np.arange(1000), person))
    assert other > 3 * one


def test_one_person_with_most_pairs_counts_as_few_people() -> None:
    even, uneven = np.full(50, 4), np.array([100, *[2] * 49])
    of_even, of_uneven = (small_sample_factor(effective_identities(who)) for who in (even, uneven))
    assert of_uneven > 1.5 > 1.05 > of_even
    assert effective_identities(uneven) == pytest.approx(
        effective_identities(uneven / uneven.sum())
    )
    generator = np.random.default_rng(0)
    widths = []
    for sizes in (even, uneven):
        person = np.repeat(np.arange(50), sizes)
        genuine = 2 + generator.standard_normal(50)[person]
        tail = np.sort(generator.standard_normal(400) + 1)[::-1]
        identities = TailIdentities(person, generator.integers(0, 50, (400, 2)), np.full(50, 4))
        rate = accept_rates(genuine, tail, 4000, [0.02], identities=identities, resamples=300)[0]
        assert rate.interval is not None and rate.threshold_interval is not None
        widths.append((np.ptp(rate.interval), np.ptp(rate.threshold_interval)))
    # Thresholds come from impostors, who are as many either way.
    assert widths[1][0] > 2 * widths[0][0] and widths[1][1] < 1.5 * widths[0][1]


def test_replicates_without_genuine_pairs_use_each_pair_once() -> None:
    """With two genuine pairs, one replicate in seven draws neither."""
    genuine, tail = np.array([0.9, 0.3]), np.linspace(1, 0, 70)
    for identities in (None, TailIdentities(np.arange(2), np.ones((70, 2), int), np.ones(9))):
        rate = accept_rates(genuine, tail, 70, [0.05], identities=identities, resamples=200)[0]
        assert rate.interval is not None and 0 <= rate.interval[0] < rate.interval[1] <= 1


def test_a_tail_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="allows 50 false accepts, but only the 10 largest"):
        accept_rates(np.ones(3), np.ones(10), 500, [0.1])
    with pytest.raises(ValueError, match="must descend"):
        accept_rates(np.ones(3), np.array([0.1, 0.2]), 500, [0.001])
    with pytest.raises(ValueError, match="0 genuine"):
        accept_rates(np.ones(0), np.ones(10), 500, [0.001])


def _two_models(seed: int, better: float) -> tuple[np.ndarray, ...]:
    """Distances of two models that find the same pairs hard, same, and identities."""
    generator = np.random.default_rng(seed)
    alone = generator.integers(40, size=(200, 1)).repeat(2, 1)
    met = generator.random((200, 40)).argsort(1)[:, :2]
    people = np.concatenate([np.stack([alone[k::5], met[k::5]]).reshape(-1, 2) for k in range(5)])
    same = people[:, 0] == people[:, 1]
    of_person = generator.standard_normal(40)[people].mean(1)
    common = of_person + generator.standard_normal(400)
    models = [
        2 - 0.35 * (common + 0.7 * generator.standard_normal(400) + same * (2 + gain)).clip(-4, 5)
        for gain in (0, better)
    ]
    return (*(model.clip(0, 3.99) for model in models), same, people)


def test_equal_models_rarely_differ() -> None:
    result = []
    for seed in range(50):
        first, second, same, people = _two_models(seed, 0.0)
        compared = compare_pairs(first, second, same, 5, people, [0.1], resamples=100, seed=seed)
        result.append([each.p_value < 0.05 for each in compared])
    # 3 to 7 % on average (benchmarks/coverage.py); 16 % of 50 trials is four std away.
    assert (np.mean(result, axis=0) <= 0.16).all(), np.mean(result, axis=0)


def test_one_pair_proves_nothing() -> None:
    generator = np.random.default_rng(0)
    same = np.arange(400) % 2 == 0
    first = np.where(same, 1.0, 2.0) + 0.05 * generator.standard_normal(400)
    second = first.copy()
    for wrong, least in ((1, 1.0), (2, 0.5), (3, 0.25)):
        second[2 * (wrong - 1)] = 3.0
        result = compare_pairs(first, second, same, 5, far_targets=[0.1, 0.001])
        for each in result:
            if each.far_target == 0.001:
                assert each.p_value is None and each.more_pairs is None
            elif each.metric != "area_under_roc":
                assert each.p_value >= least and each.interval[0] <= 0 <= each.interval[1]
                assert each.more_pairs is None or 0 < each.more_pairs < 10**6
        assert [each.too_few_impostors for each in result[-2:]] == [
            False,
            True,
        ]  # 20 false accepts, a fifth of one
        assert result[-1].difference == pytest.approx(-wrong / 200)


def test_four_people_prove_nothing() -> None:
    generator = np.random.default_rng(0)
    alone = np.repeat(np.arange(20), 10)
    met = np.stack([alone, (alone + 1 + np.tile(np.arange(10), 20)) % 20], axis=1)
    people = np.concatenate([np.stack([alone, alone], axis=1), met])
    same = people[:, 0] == people[:, 1]
    first = np.where(same, 1.0, 2.0) + 0.05 * generator.standard_normal(400)
    second = np.where(same & (people[:, 0] < 4), 3.0, first)
    for each in compare_pairs(first, second, same, 1, people, [0.1]):
        if each.metric != "area_under_roc":
            assert each.p_value >= 0.1 and each.interval[0] <= 0 <= each.interval[1]


def test_a_better_model_is_told_from_a_worse() -> None:
    first, second, same, people = _two_models(0, 1.0)
    compared = {each.metric: each for each in compare_pairs(first, second, same, 5, people)}
    area = compared["area_under_roc"]
    assert area.difference > 0 and area.p_value < 0.01 and area.more_pairs == 0
    assert area.interval[0] > 0 and area.difference == pytest.approx(area.second - area.first)
    back = compare_pairs(second, first, same, 5, people)[1]
    assert back.difference == pytest.approx(-area.difference)
    assert back.p_value == pytest.approx(area.p_value)
    # Labels of identities may be of any kind; these sort like the numbers.
    named = [[f"{a:09}", f"{b:09}"] for a, b in people.tolist()]
    assert compare_pairs(second, first, same, 5, named)[1].p_value == back.p_value
    nothing = compare_pairs(first, first, same, 5, people, resamples=20)[0]
    assert nothing.p_value == 1 and nothing.more_pairs is None
    slight = _two_models(3, 0.05)
    unsettled = compare_pairs(*slight[:3], 5, slight[3])[1]
    assert unsettled.p_value > 0.05 and unsettled.more_pairs is not None
    assert unsettled.more_pairs > 400
