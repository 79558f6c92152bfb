from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from margrave.evaluation import (
    Pooling,
    evaluate_templates,
    pool_templates,
    subjects_of_pairs,
    template_scores,
    templates,
)

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "evaluation").glob("ijb_ver*.npz"))


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) == 2


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("rows_at_once", [7, 4096])
def test_golden(path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "ROWS_PER_READ", rows_at_once)
    golden = np.load(path, allow_pickle=False)
    numbers, pooled = pool_templates(
        golden["image_embeddings"],
        golden["template_ids"],
        golden["media_ids"],
        flipped=golden["flipped_embeddings"],
        detector_scores=golden["detector_scores"],
        pooling=Pooling(detector=True),
    )
    np.testing.assert_array_equal(numbers, golden["unique_templates"])
    np.testing.assert_allclose(pooled, golden["template_embeddings"], rtol=0, atol=1e-12)
    pairs = golden["pair_template_1"], golden["pair_template_2"]
    scores = template_scores(numbers, pooled, *pairs)
    np.testing.assert_allclose(scores, golden["scores"], rtol=0, atol=1e-12)
    same = golden["pair_label"] == 1
    result = evaluate_templates(
        scores,
        same,
        "N1D1F2",
        subjects=subjects_of_pairs(*pairs, same),
        far_targets=golden["far"].tolist(),
        resamples=20,
    )
    assert [rate.tar for rate in result.nearest] == golden["tar"].tolist()
    assert result.area_under_roc == pytest.approx(float(golden["auc"]), abs=1e-14)
    for rate in result.accept_rates:
        assert rate.far <= rate.far_target
        assert rate.interval is not None and rate.interval[0] <= rate.tar <= rate.interval[1]
    assert "N1D1F2" in result.result().rules


def test_each_letter_of_the_code_by_hand() -> None:
    faces = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    mirrored = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    template, media = np.array([5, 5, 5]), np.array([1, 2, 2])
    scores = np.array([0.5, 1.0, 1.0])

    def pooled(**code: bool) -> np.ndarray:
        return pool_templates(
            faces,
            template,
            media,
            flipped=mirrored,
            detector_scores=scores,
            pooling=Pooling(**code),
        )[1][0]

    def unit(*values: float) -> np.ndarray:
        return np.array(values) / np.linalg.norm(values)

    np.testing.assert_allclose(pooled(flip=False), unit(3, 1.5))
    np.testing.assert_allclose(pooled(flip=False, norm=False), unit(1, 1))
    np.testing.assert_allclose(pooled(flip=False, detector=True), unit(1.5, 1.5))
    np.testing.assert_allclose(pooled(), unit(3 + 0.5, 1 + 1 + 1))
    assert Pooling(norm=False, detector=True, flip=False).code == "N0D1F1"


def test_members_may_lie_anywhere_and_twice() -> None:
    generator = np.random.default_rng(0)
    faces = generator.standard_normal((50, 4))
    rows = generator.integers(0, 50, 80)
    template, media = generator.integers(0, 9, 80), generator.integers(0, 3, 80)
    by_rows = pool_templates(faces, template, media, rows=rows)[1]
    np.testing.assert_allclose(by_rows, pool_templates(faces[rows], template, media)[1], atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"media": np.zeros(3, int)}, "3 media"),
        # NumPy turns a list of tuples into a matrix.
        ({"media": [("clip", frame) for frame in range(4)]}, r"shapes \(4,\) and \(4, 2\)"),
        ({"rows": np.array([0, 1, 2, 9])}, "between 0 and 3, got 0 to 9"),
        ({"pooling": Pooling(flip=True)}, "flipped images"),
        ({"pooling": Pooling(flip=False, detector=True)}, "scores"),
        (
            {
                "pooling": Pooling(flip=False, detector=True),
                "detector_scores": np.array([1, np.nan, 1, 1]),
            },
            r"detector_scores\[1\] = nan must be finite",
        ),
        ({"embeddings": np.array([[1.0], [-1.0], [1.0], [1.0]])}, "the first is template 3"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    given = {
        "embeddings": np.ones((4, 2)),
        "templates": np.array([3, 3, 4, 4]),
        "media": np.arange(4),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        pool_templates(**given)


def test_templates_without_images_are_named() -> None:
    with pytest.raises(ValueError, match="pair 1 names template 8"):
        template_scores(np.array([3, 7]), np.eye(2), np.array([3, 8]), np.array([7, 7]))


def test_a_pair_at_odds_with_the_others_is_named() -> None:
    first, second = np.array([1, 2, 1]), np.array([2, 3, 3])
    with pytest.raises(ValueError, match="pair 2 labels templates 1 and 3 as different"):
        subjects_of_pairs(first, second, np.array([True, True, False]))


def test_nearest_points_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    targets = np.array([1e-3, 1e-2, 3e-2, 0.1, 0.3])
    for _ in range(100):
        count = int(generator.integers(20, 300))
        same = generator.random(count) < 0.3
        same[:2] = True, False
        scores = np.round(generator.standard_normal(count) + same, int(generator.integers(1, 4)))
        far, tar, _ = roc_curve(same, scores)
        far, tar = far[::-1], tar[::-1]
        expected = [tar[np.abs(far - target).argmin()] for target in targets]
        actual = evaluate_templates(scores, same, "", far_targets=targets.tolist(), resamples=0)
        np.testing.assert_allclose([rate.tar for rate in actual.nearest], expected, atol=1e-12)
