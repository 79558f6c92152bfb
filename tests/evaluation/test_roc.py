from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.model_selection import KFold

from margrave.evaluation import area_under, equal_error_rate, roc_curve, tar_at_far
from margrave.evaluation.roc import THRESHOLDS, accept_bins, cross_validate, fold_of_pair


def _scores(seed: int, pairs: int = 300, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    same = np.arange(pairs) % 3 == 0
    return np.round(generator.normal(same, 1.0), decimals), same


@pytest.mark.parametrize(("pairs", "folds"), [(6000, 10), (23, 10), (10, 10), (7, 3)])
def test_folds_are_those_of_scikit_learn(pairs: int, folds: int) -> None:
    expected = np.empty(pairs, int)
    for fold, (_, inside) in enumerate(KFold(folds, shuffle=False).split(np.zeros(pairs))):
        expected[inside] = fold
    np.testing.assert_array_equal(fold_of_pair(pairs, folds), expected)


def test_accept_bins_mean_strictly_below() -> None:
    distances = np.array([0.0, 0.005, 0.01, 1.0, THRESHOLDS[137], 3.99, 3.995, 4.0])
    accepted = distances[:, None] < THRESHOLDS
    for row, first in zip(accepted, accept_bins(distances), strict=True):
        assert row.sum() == 400 - first
        assert row[first:].all()


def test_cross_validation_is_the_protocol_written_out() -> None:
    generator = np.random.default_rng(3)
    pairs, folds = 60, 4
    same = generator.random(pairs) < 0.5
    distances = generator.normal(np.where(same, 1.0, 1.6), 0.4).clip(0, 4)
    fold = fold_of_pair(pairs, folds)
    cells = (fold * 2 + same) * 401 + accept_bins(distances)
    result = cross_validate(np.bincount(cells, minlength=folds * 802).reshape(folds, 2, 401))
    for number in range(folds):
        rest, test = fold != number, fold == number
        scores = [((distances < t) == same)[rest].mean() for t in THRESHOLDS]
        chosen = int(np.argmax(scores))
        assert result.fold_threshold_index[number] == chosen
        assert (
            result.fold_accuracy[number] == ((distances < THRESHOLDS[chosen]) == same)[test].mean()
        )


@pytest.mark.parametrize("seed", range(5))
def test_roc_and_area_agree_with_scikit_learn(seed: int) -> None:
    scores, same = _scores(seed)
    roc = roc_curve(scores, same)
    far, tar, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc.far, far)
    np.testing.assert_allclose(roc.tar, tar)
    assert area_under(roc) == pytest.approx(metrics.roc_auc_score(same, scores), abs=1e-12)


def test_weights_are_repetitions() -> None:
    scores, same = _scores(7)
    repeats = np.random.default_rng(0).integers(0, 4, (3, len(scores)))
    weighted = roc_curve(scores, same, repeats)
    for row, repeat in enumerate(repeats):
        expected = roc_curve(np.repeat(scores, repeat), np.repeat(same, repeat))
        assert area_under(weighted)[row] == pytest.approx(float(area_under(expected)), abs=1e-12)
        assert equal_error_rate(weighted)[row] == pytest.approx(
            float(equal_error_rate(expected)), abs=1e-12
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.001, 0.9), st.integers(0, 3))
def test_tar_at_far_keeps_its_promise(seed: int, target: float, decimals: int) -> None:
    scores, same = _scores(seed, 60, decimals)
    rate = tar_at_far(scores, same, [target])[0]
    accepted = scores > rate.threshold
    assert accepted[~same].mean() == pytest.approx(rate.far) and rate.far <= target
    assert accepted[same].mean() == pytest.approx(rate.tar)
    # Accepting one more distinct score would break it.
    looser = scores >= rate.threshold
    assert looser[~same].mean() > target
    assert rate.too_few_impostors == (target * 40 < 1)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0, 2.0, 1.0, 0.0], 0.0),
        ([0.0, 1.0, 2.0, 3.0], 1.0),
        ([2.0, 0.0, 2.0, 0.0], 0.5),
        ([1.0, 1.0, 1.0, 1.0], 0.5),
    ],
)
def test_equal_error_rate(scores: list[float], expected: float) -> None:
    roc = roc_curve(np.array(scores), np.array([True, True, False, False]))
    assert float(equal_error_rate(roc)) == pytest.approx(expected)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 2.0])
def test_far_targets_are_shares(target: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        tar_at_far(np.array([1.0, 0.0]), np.array([True, False]), [target])


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([1.0, np.nan], [True, False], "the first is that of pair 1"),
        ([1.0, 0.0], [True, True], "2 genuine and 0 impostor"),
        ([1.0, 0.0], [False, False], "0 genuine and 2 impostor"),
        ([1.0, 0.0], [True], "of equal length"),
    ],
)
def test_unfit_scores_are_refused(scores: list, same: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roc_curve(np.array(scores), np.array(same))
