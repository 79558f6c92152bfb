from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from margrave.evaluation import (
    detection_rates,
    evaluate_identification,
    evaluate_open_set,
    mean_of_galleries,
    merged_gallery_rates,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation"


def test_golden_ranks_with_several_mates_and_distractors() -> None:
    golden = np.load(GOLDEN / "tinyface_rank.npz", allow_pickle=False)
    result = evaluate_identification(
        golden["probe"],
        golden["probe_label"],
        golden["gallery"],
        golden["gallery_label"],
        ranks=golden["ranks"].tolist(),
    )
    np.testing.assert_allclose(
        [rank.rate for rank in result.ranks], golden["rate"], rtol=0, atol=1e-6
    )
    assert result.distractors == (golden["gallery_label"] < 0).sum()
    for rank in result.ranks:
        assert rank.interval is not None and rank.interval[0] < rank.rate < rank.interval[1]
    assert result.result().figure("identification rate", rank=1).value == result.ranks[0].rate


def test_golden_detection_and_identification() -> None:
    golden = np.load(GOLDEN / "open_set_dir.npz", allow_pickle=False)
    actual = detection_rates(
        golden["probe"],
        golden["probe_label"],
        golden["gallery"],
        golden["gallery_label"],
        far_targets=golden["far_target"].tolist(),
        ranks=golden["ranks"].tolist(),
    )
    np.testing.assert_allclose([each.far for each in actual], golden["far"], rtol=1e-7)
    np.testing.assert_allclose([each.threshold for each in actual], golden["threshold"], atol=1e-12)
    rates = [[rank.rate for rank in each.rates] for each in actual]
    np.testing.assert_allclose(rates, golden["dir"], rtol=0, atol=1e-7)


def test_golden_closed_gallery_and_the_legacy_rule() -> None:
    golden = np.load(GOLDEN / "ijb_identification.npz", allow_pickle=False)
    sides = [golden[name] for name in ("probe", "probe_subject", "gallery", "gallery_subject")]
    closed = evaluate_identification(*sides, ranks=(1, 5, 10), resamples=0)
    assert [rank.rate for rank in closed.ranks] == [golden[f"top{k}"] for k in (1, 5, 10)]
    legacy = merged_gallery_rates(*sides, golden["fpir"].tolist())
    assert [rate.tpir for rate in legacy] == golden["tpir"].tolist()
    np.testing.assert_allclose([rate.threshold for rate in legacy], golden["threshold"], atol=1e-9)
    with pytest.raises(ValueError, match="probe 0 has no mate in the gallery"):
        merged_gallery_rates(sides[0], sides[1] + 1000, *sides[2:])


def test_the_legacy_rule_needs_impostor_pairs() -> None:
    faces, labels = np.eye(3), np.zeros(3, int)
    with pytest.raises(ValueError, match=r"FPIR 0\.1 needs 1 score between .*, but there are 0"):
        merged_gallery_rates(faces, labels, faces, labels)


def _angle(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


# Gallery: person 0 at 0°, person 1 at 90°, person 2 at 180°.
GALLERY = _angle(0, 90, 180), np.array([0, 1, 2])
# Mated probes at 10° (found), 40° (found, weakly), 60° (nearer to person 1);
# strangers at 20° (cosine 0.94 with 0), 75° (0.97 with 1), 125° (0.82 with 1), 270° (0 with 0, 2).
PROBES = _angle(10, 40, 60, 20, 75, 125, 270), np.array([0, 0, 0, 7, 8, 9, 10])


def test_open_set_by_hand() -> None:
    result = evaluate_open_set(
        *PROBES, *GALLERY, fpir_targets=[0.25, 0.5, 0.75], ranks=[1, 2], resamples=50
    )
    assert (result.mated, result.non_mated, result.gallery) == (3, 4, 3)
    cosine = np.cos(np.radians([15, 20, 35]))
    np.testing.assert_allclose([rate.threshold for rate in result.rates], cosine, atol=1e-12)
    assert [rate.fpir for rate in result.rates] == [0, 0.25, 0.5]
    # Only the probe at 10° lies above cos 15° and cos 20°; nor does the one at 40° at cos 35°.
    assert [rate.tpir for rate in result.rates] == [1 / 3, 1 / 3, 1 / 3]
    assert [rank.rate for rank in result.ranks] == [2 / 3, 1.0]
    loose = evaluate_open_set(*PROBES, *GALLERY, fpir_targets=[0.999], resamples=0)
    assert loose.rates[0].threshold == pytest.approx(np.cos(np.radians(35)))


def test_a_mate_above_the_threshold_must_rank_first() -> None:
    gallery = _angle(0, 12), np.array([0, 1])
    probes = _angle(8, 80), np.array([0, 5])
    result = evaluate_open_set(*probes, *gallery, fpir_targets=[0.5], ranks=[1, 2], resamples=0)
    assert result.rates[0].threshold < np.cos(np.radians(8))
    assert result.rates[0].tpir == 0 and [rank.rate for rank in result.ranks] == [0, 1]


def test_a_mate_that_ties_with_a_non_mate_does_not_rank_first() -> None:
    """As in ijb_evals.py: pos_sims > neg_sims.max(1)."""
    gallery = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])
    probes = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 5])
    result = evaluate_open_set(*probes, *gallery, fpir_targets=[0.5], ranks=[1], resamples=0)
    assert result.rates[0].tpir == 0 and result.ranks[0].rate == 1


def test_mean_of_two_galleries() -> None:
    one = evaluate_open_set(*PROBES, *GALLERY, fpir_targets=[0.5], ranks=[1], resamples=50)
    other = evaluate_open_set(
        *PROBES, _angle(55, 90), np.array([0, 1]), fpir_targets=[0.5], ranks=[1], resamples=50
    )
    mean = mean_of_galleries([one, other])
    assert mean.rates[0].tpir == (one.rates[0].tpir + other.rates[0].tpir) / 2
    assert mean.ranks[0].rate == (one.ranks[0].rate + other.ranks[0].rate) / 2
    assert mean.galleries == (one, other) and "mean of 2" in mean.rules
    assert mean.result().figure("TPIR", FPIR=mean.rates[0].target).value == mean.rates[0].tpir


def test_probes_that_have_no_mate_are_counted_or_refused() -> None:
    actual = evaluate_identification(*PROBES, *GALLERY, ranks=[1], resamples=0)
    assert (actual.probes, actual.probes_without_mate) == (3, 4)
    with pytest.raises(ValueError, match="no probe has a mate"):
        evaluate_identification(PROBES[0], PROBES[1] + 100, *GALLERY)
    with pytest.raises(ValueError, match="0 have none"):
        evaluate_open_set(PROBES[0][:3], PROBES[1][:3], *GALLERY)
    with pytest.raises(ValueError, match="ranks"):
        evaluate_identification(*PROBES, *GALLERY, ranks=[0])
    as_array = evaluate_identification(*PROBES, *GALLERY, ranks=np.array([1]), resamples=0)
    assert as_array.result().figures == actual.result().figures
