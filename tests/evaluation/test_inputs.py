"""Arrays or tensors, and labels of any kind: the figures are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from margrave.evaluation import (
    Pooling,
    detection_rates,
    evaluate_all_to_all,
    evaluate_identification,
    evaluate_open_set,
    evaluate_pairs,
    evaluate_templates,
    merged_gallery_rates,
    pool_templates,
    tar_at_far,
    template_scores,
)
from margrave.evaluation.inputs import as_labels

GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.standard_normal((60, 8)) + np.repeat(GENERATOR.standard_normal((20, 8)), 3, 0)
LABELS = np.repeat(np.arange(20), 3)
NAMES = [f"person {label}" for label in LABELS]


@pytest.mark.parametrize("evaluate", [evaluate_identification, evaluate_open_set, detection_rates])
def test_searches(evaluate) -> None:
    probes, gallery = np.arange(60) % 3 > 0, (np.arange(60) % 3 == 0) & (LABELS < 15)
    sides = (ROWS[probes], LABELS[probes], ROWS[gallery], LABELS[gallery])
    names = np.array(NAMES)
    others = (
        torch.tensor(ROWS[probes], requires_grad=True),
        names[probes].tolist(),
        torch.tensor(ROWS[gallery]),
        names[gallery],
    )
    assert evaluate(*sides, resamples=20) == evaluate(*others, resamples=20)


def test_distractors_are_none() -> None:
    result = evaluate_identification(ROWS[:3], NAMES[:3], ROWS[3:], [*NAMES[:2], *[None] * 55])
    assert result.distractors == 55


def test_everything_against_everything() -> None:
    result = evaluate_all_to_all(ROWS, LABELS, resamples=20)
    assert evaluate_all_to_all(torch.tensor(ROWS), NAMES, resamples=20) == result


def test_pairs() -> None:
    first, second = np.arange(50), np.arange(50) + np.arange(50) % 2 + 1
    same = LABELS[first] == LABELS[second]
    identities = np.stack([LABELS[first], LABELS[second]], 1)
    result = evaluate_pairs(ROWS[first], ROWS[second], same, identities=identities, resamples=20)
    names = [(NAMES[one], NAMES[other]) for one, other in zip(first, second, strict=True)]
    sides = torch.tensor(ROWS[first]), torch.tensor(ROWS[second])
    again = evaluate_pairs(*sides, torch.tensor(same), identities=names, resamples=20)
    assert again == result


def test_templates() -> None:
    pooling = Pooling(flip=False)
    numbers, pooled = pool_templates(ROWS, LABELS, np.arange(60), pooling=pooling)
    names, same = pool_templates(torch.tensor(ROWS), NAMES, list(range(60)), pooling=pooling)
    order = np.argsort([f"person {number}" for number in numbers])
    np.testing.assert_array_equal(same, pooled[order])
    scores = template_scores(names, same, ["person 3"], ["person 12"])
    np.testing.assert_array_equal(scores, template_scores(numbers, pooled, [3], [12]))


def test_negative_numbers_are_distractors_among_labels_of_any_type() -> None:
    probes, gallery = as_labels(["Ann", "Bo"], ["Ann", -1, None, 3])
    assert probes.tolist() == [0, 1] and gallery.tolist() == [0, -1, -1, 2]


def test_labels_keep_their_type() -> None:
    """NumPy would turn -1 among strings into "-1", and tuples into the rows of a matrix."""
    numbers = [np.int64(1), torch.tensor(1), np.float32(-1), -1]
    assert as_labels(["Ann", -1, "-1", 1, "1"])[0].tolist() == [0, -1, 1, 2, 3]
    assert as_labels([(1, 2), (1, 3)], [(1, 3)])[0].tolist() == [0, 1]
    assert as_labels(numbers)[0].tolist() == [0, 0, -1, -1]
    assert as_labels(np.array(["Ann", -1, None], object))[0].tolist() == [0, -1, -1]
    assert as_labels(range(2), [-3])[1].tolist() == [-3]
    with pytest.raises(ValueError, match=r"label \[1, 2\] is not hashable; pass one string"):
        as_labels([[1, 2], [1, 3]])


def test_pairs_of_labels_of_any_type() -> None:
    first = np.arange(40)
    sides = ROWS[first], ROWS[first + 1], LABELS[first] == LABELS[first + 1]
    pairs = np.stack([LABELS[first], LABELS[first + 1]], 1)
    result = evaluate_pairs(*sides, identities=pairs, resamples=20)
    kinds = [lambda label: ("person", label), lambda label: str(label) if label % 2 else label]
    for kind in kinds:
        named = [[kind(int(label)) for label in pair] for pair in pairs]
        assert evaluate_pairs(*sides, identities=named, resamples=20) == result
    for wrong in (["ab", "cd"] * 20, [0, 1] * 20, [(1, 2, 3)] * 40):
        with pytest.raises(ValueError, match=r"shape \(40, 2\), two per pair, but pair 0"):
            evaluate_pairs(*sides, identities=wrong)


def test_targets_and_ranks_are_checked_before_anything_is_searched() -> None:
    rows = np.eye(3)
    with pytest.raises(ValueError, match=r"FPIR target must be between 0 and 1, got 1\.5"):
        evaluate_open_set(rows, np.arange(3), rows, np.arange(3), fpir_targets=[1.5])
    with pytest.raises(ValueError, match="FPIR target must be between 0 and 1, got nan"):
        merged_gallery_rates(rows, np.arange(3), rows, np.arange(3), [float("nan")])
    with pytest.raises(ValueError, match=r"ranks must be integers of at least 1, got \[1.5\]"):
        evaluate_identification(rows, np.arange(3), rows, np.arange(3), ranks=[1.5])  # type: ignore[list-item]
    for target in (1.5, -0.5):
        with pytest.raises(ValueError, match=f"FAR target must be between 0 and 1, got {target}"):
            detection_rates(rows, np.arange(3), rows, np.arange(3), far_targets=[target])
    for search in (evaluate_identification, evaluate_open_set, detection_rates):
        with pytest.raises(ValueError, match="resamples must be at least 2"):
            search(rows, np.arange(3), rows + np.nan, np.arange(3), resamples=1)
    # Labels 0 and 1 of pairs are as good as booleans.
    scores = np.array([0.9, 0.8, 0.3, 0.1])
    assert tar_at_far(scores, np.array([1, 0, 1, 0]), [0.5]) == tar_at_far(
        scores, np.array([True, False, True, False]), [0.5]
    )


@pytest.mark.parametrize("count", [49, 98, 103])
def test_one_allowed_false_accept_is_not_too_few(count: int) -> None:
    """1/49 · 49 is below 1 in binary."""
    scores = np.linspace(0, 1, count + 1)
    same = np.arange(count + 1) == count
    assert not tar_at_far(scores, same, [1 / count])[0].too_few_impostors
    assert tar_at_far(scores, same, [0.9 / count])[0].too_few_impostors


def test_subjects_that_contradict_the_pairs_are_refused() -> None:
    subjects = np.array([[0, 0], [0, 1]])
    with pytest.raises(ValueError, match="identities contradict same in 2 pairs"):
        evaluate_templates(
            np.array([0.9, 0.1]), np.array([False, True]), "N1D0F1", subjects=subjects
        )


def test_hashes_of_64_bits_are_compared_exactly() -> None:
    probes, gallery = as_labels(np.array([2**60, 5], np.uint64), np.array([2**60 + 2, 5]))
    assert (probes[:, None] == gallery).tolist() == [[False, False], [False, True]]
