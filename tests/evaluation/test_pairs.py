from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from margrave.evaluation import (
    evaluate_pairs,
    evaluate_strata,
    fuse_flips,
    read_results,
    tar_at_far,
    write_results,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation"


def _pairs(seed: int = 0, pairs: int = 200, noise: float = 1.2) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    first, stranger, change = generator.standard_normal((3, pairs, 16))
    same = np.arange(pairs) // 10 % 2 == 0
    return first, np.where(same[:, None], first + noise * change, stranger), same


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("pairs_*.npz")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    golden = np.load(path, allow_pickle=False)
    embeddings = golden["embeddings"]
    result = evaluate_pairs(embeddings[0::2], embeddings[1::2], golden["issame"], resamples=0)
    assert result.fold_accuracy == tuple(golden["fold_accuracy"].tolist())
    assert result.accuracy == golden["accuracy"]
    assert result.accuracy_std == golden["accuracy_std"]
    np.testing.assert_array_equal(result.roc_thresholds, golden["roc_thresholds"])
    np.testing.assert_allclose(result.roc_tpr, golden["roc_tpr"], rtol=0, atol=1e-15)
    np.testing.assert_allclose(result.roc_fpr, golden["roc_fpr"], rtol=0, atol=1e-15)


def test_there_are_golden_files() -> None:
    assert len(list(GOLDEN.glob("pairs_*.npz"))) == 3


def test_a_result_is_written_and_read(tmp_path: Path) -> None:
    first, second, same = _pairs()
    result = evaluate_pairs(first, second, same, resamples=50)
    write_results(tmp_path / "results.json", [result.result("set")])
    (read,) = read_results(tmp_path / "results.json")
    assert read == result.result("set") and read.rules.startswith("LFW 10-fold")
    assert read.counts == {"pairs": 200, "genuine": 100, "folds": 10}
    assert read.scores and np.allclose(read.figure("AUC").value, result.area_under_roc)
    assert result.accept_rates == tuple(
        type(rate)(**{**vars(rate), "interval": interval})
        for rate, interval in zip(
            tar_at_far(_cosines(first, second), same),
            result.intervals.true_accept_rates if result.intervals else (),
            strict=True,
        )
    )


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    return 1 - np.square(units[0] - units[1]).sum(1) / 2


def test_length_does_not_matter_and_inputs_stay() -> None:
    first, second, same = _pairs()
    copies = first.copy(), second.copy(), same.copy()
    plain = evaluate_pairs(first, second, same, resamples=0)
    assert evaluate_pairs(4 * first, second / 8, same, resamples=0) == plain
    for before, after in zip(copies, (first, second, same), strict=True):
        np.testing.assert_array_equal(before, after)


def test_fusing_flips_adds_raw_embeddings() -> None:
    generator = np.random.default_rng(0)
    plain, flipped = generator.standard_normal((2, 5, 8))
    total = plain + flipped
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(fuse_flips(plain, flipped), expected)
    flipped[[1, 3]] = -plain[[1, 3]]
    with pytest.raises(ValueError, match=r"2 rows of embeddings \+ flipped .*indices 1, 3\)"):
        fuse_flips(plain, flipped)
    with pytest.raises(ValueError, match="the same shape"):
        fuse_flips(plain, flipped[:2])


def test_unfit_pairs_are_refused() -> None:
    first, second, same = _pairs(pairs=20)
    with pytest.raises(ValueError, match="21 folds and 20 pairs"):
        evaluate_pairs(first, second, same, folds=21)
    with pytest.raises(ValueError, match="folds must be at least 2"):
        evaluate_pairs(first, second, same, folds=1)
    with pytest.raises(ValueError, match="needs both"):
        evaluate_pairs(first, second, np.ones(20, bool))
    with pytest.raises(ValueError, match="the same shape"):
        evaluate_pairs(first[:19], second, same)
    broken = first.copy()
    broken[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 rows of embeddings_a .*indices 4\)"):
        evaluate_pairs(broken, second, same)
    with pytest.raises(ValueError, match=r"pair 10 has identities"):
        evaluate_pairs(first, second, same, identities=np.zeros((20, 2), int), resamples=0)


def test_a_fold_of_one_class_is_legal() -> None:
    first, second, same = _pairs()
    order = np.argsort(same, kind="stable")
    result = evaluate_pairs(first[order], second[order], same[order], resamples=20)
    assert 0 < result.accuracy <= 1 and np.isfinite(result.roc_tpr).all()


def test_strata_add_up_to_the_whole() -> None:
    first, second, same = _pairs(noise=1.6)
    quality = np.random.default_rng(1).random(200)
    full = evaluate_pairs(first, second, same, resamples=0)
    strata = evaluate_strata(first, second, same, quality, [0.25, 0.5])
    assert [(part.low, part.high) for part in strata] == [(None, 0.25), (0.25, 0.5), (0.5, None)]
    assert sum(part.pairs for part in strata) == 200
    assert sum(part.genuine for part in strata) == 100
    # Folds are equally large here, so the mean over folds is the mean over pairs.
    right = sum((part.accuracy or 0) * part.pairs for part in strata)
    assert right / 200 == pytest.approx(full.accuracy)
    for place, rate in enumerate(full.accept_rates):
        accepted = sum((part.tar[place] or 0) * part.genuine for part in strata)
        assert accepted / 100 == pytest.approx(rate.tar)
    assert [part.figures()[0].value for part in strata] == [part.accuracy for part in strata]


def test_empty_strata_say_none() -> None:
    first, second, same = _pairs()
    empty = evaluate_strata(first, second, same, np.ones(200), [0.0])[0]
    assert (empty.pairs, empty.accuracy, set(empty.tar)) == (0, None, {None})


def test_without_edges_there_is_one_stratum() -> None:
    first, second, same = _pairs()
    (stratum,) = evaluate_strata(first, second, same, np.ones(200), [])
    assert stratum.figures()[0].label == "accuracy, quality any"


def test_an_unknown_quality_is_named() -> None:
    first, second, same = _pairs()
    quality = np.ones(200)
    quality[7] = np.nan
    with pytest.raises(ValueError, match="pair 7 has nan"):
        evaluate_strata(first, second, same, quality, [0.5])


@pytest.mark.parametrize("edges", [[0.5, 0.5], [1.0, 0.0], [np.nan]])
def test_edges_must_ascend(edges: list[float]) -> None:
    first, second, same = _pairs()
    with pytest.raises(ValueError, match="ascend"):
        evaluate_strata(first, second, same, np.ones(200), edges)
