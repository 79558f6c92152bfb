"""Scores and norms that are kept with a model."""

from __future__ import annotations

import numpy as np
import pytest

from margrave.inference import Features
from margrave.models import ModelCard
from margrave.protocols import measure_reference
from margrave.protocols.score_reference import far_thresholds, pair_scores, score_histogram


def features(people: int = 12, each: int = 4, constant: bool = False) -> Features:
    generator = np.random.default_rng(3)
    labels = np.repeat(np.arange(people), each)
    centers = generator.normal(size=(people, 16))
    rows = centers[labels] + 0.3 * generator.normal(size=(len(labels), 16))
    if constant:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(
        rows.astype(np.float32),
        np.array([b"%d" % row for row in range(len(labels))]),
        {"images": {"source": "faces", "digest": "x"}},
        ModelCard(backbone={"kind": "mbf"}),
        labels=labels,
    )


def test_a_reference_is_of_every_pair() -> None:
    measured = measure_reference(features())
    assert measured.measured_on == "48 images of 12 people in faces"
    assert sum(measured.genuine) == pytest.approx(1) == sum(measured.impostors)
    assert not measured.flips and len(measured.norm_percentiles) == 101
    calibration = measured.calibration
    assert calibration is not None and calibration.people == 6
    assert 0 <= calibration.cllr_min <= calibration.cllr < 0.5
    fars = [far for far, _ in measured.far_thresholds]
    impostors = 48 * 47 // 2 - 12 * 6
    assert fars == sorted(fars, reverse=True) and fars[-1] * impostors >= 3
    assert measure_reference(features()) == measured


def test_no_calibration_and_no_norms_are_invented() -> None:
    assert measure_reference(features(people=9)).calibration is None
    assert measure_reference(features(each=1)).calibration is None
    assert measure_reference(features(constant=True)).norm_percentiles == ()


def test_people_without_labels_are_refused() -> None:
    unlabeled = features()
    unlabeled.labels = np.full(len(unlabeled), -1)
    with pytest.raises(ValueError, match="no labeled images"):
        measure_reference(unlabeled)


def test_thresholds_keep_their_rates() -> None:
    impostors = np.random.default_rng(4).normal(0, 0.2, 5000).clip(-1, 1)
    for far, threshold in far_thresholds(impostors):
        accepted = (impostors > threshold).mean()
        assert accepted <= far < accepted + 2 / 5000


def test_pairs_are_all_pairs_once() -> None:
    units = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    genuine, impostors = pair_scores(units, np.array([5, 5, 6, 7]))
    assert genuine.tolist() == [1.0] and len(impostors) == 5
    assert score_histogram(genuine)[-1] == 1.0 and score_histogram(genuine[:0]) == ()
