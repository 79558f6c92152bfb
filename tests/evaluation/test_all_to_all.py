from __future__ import annotations

import numpy as np
import pytest

from margrave.evaluation import evaluate_all_to_all, tar_at_far


def _angle(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def _faces(
    people: int = 40, images: int = 4, noise: float = 0.8, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((people, 12)).repeat(images, axis=0)
    return centers + noise * generator.standard_normal(centers.shape), np.arange(
        people * images
    ) // images


def test_verification_equals_that_of_all_pairs() -> None:
    faces, labels = _faces()
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    pairs = np.triu_indices(len(faces), 1)
    expected = tar_at_far(
        (unit @ unit.T)[pairs], labels[pairs[0]] == labels[pairs[1]], [0.1, 0.01, 0.001]
    )
    actual = evaluate_all_to_all(faces, labels, far_targets=[0.1, 0.01, 0.001])
    for one, other in zip(actual.verification, expected, strict=True):
        assert (one.far, one.tar) == (other.far, other.tar)
        assert one.threshold == pytest.approx(other.threshold, abs=1e-14)
        assert one.interval is not None and one.interval[0] < one.tar < one.interval[1]
    assert actual.result().counts["impostors"] == actual.impostors


def test_megaface_by_hand() -> None:
    # Person 0 at 0° and 10°, person 1 at 90° and 120°; distractors at 15° and 200°.
    faces, labels = _angle(0, 10, 90, 120), np.array([0, 0, 1, 1])
    distractors = _angle(15, 200)
    actual = evaluate_all_to_all(
        faces,
        labels,
        distractors,
        impostors_within=False,
        far_targets=[0.13, 0.26],
        ranks=[1, 2],
        identification_far_targets=[0.3],
        resamples=10,
    )
    assert (actual.genuine, actual.impostors, actual.distractors) == (2, 8, 2)
    # 0° -> 10° beats 15°; 10° -> 0° does not (15° is 5° away); 90° <-> 120° beat 15° and 200°.
    assert [rank.rate for rank in actual.ranks] == [3 / 4, 1.0]
    # False accepts by angle: 5° (10° with 15°), 15° (0°), 75° (90°), 80° (120° with 200°) …
    # One of eight may be accepted: the threshold is cos 15°, which only the pair at 10° exceeds.
    np.testing.assert_allclose(
        [rate.threshold for rate in actual.verification], np.cos(np.radians([15, 75])), atol=1e-12
    )
    assert [rate.tar for rate in actual.verification] == [0.5, 1.0]
    # Best distractors at 5°, 15°, 75°, 80°: one probe of four may exceed the threshold, cos 15°.
    # Found first and above: 0° -> 10° alone.
    assert actual.identification[0].threshold == pytest.approx(np.cos(np.radians(15)))
    assert actual.identification[0].tar == 1 / 4


def test_own_impostors_and_distractors_together() -> None:
    faces, labels = _faces(people=20, images=3)
    distractors = np.random.default_rng(5).standard_normal((70, 12))
    actual = evaluate_all_to_all(faces, labels, distractors, far_targets=[0.05], resamples=20)
    unit, others = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (faces, distractors)
    )
    pairs = np.triu_indices(60, 1)
    scores = np.concatenate([(unit @ unit.T)[pairs], (unit @ others.T).ravel()])
    same = np.concatenate([labels[pairs[0]] == labels[pairs[1]], np.zeros(60 * 70, bool)])
    expected = tar_at_far(scores, same, [0.05])[0]
    assert actual.impostors == (~same).sum()
    assert (actual.verification[0].tar, actual.verification[0].far) == (expected.tar, expected.far)


def test_resumed_from_any_moment_gives_the_same_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    from margrave.search import score_blocks

    monkeypatch.setattr(score_blocks, "ROWS_PER_BLOCK", 16)
    monkeypatch.setattr(score_blocks, "COLUMNS_PER_BLOCK", 16)
    faces, labels = _faces()
    distractors = np.random.default_rng(5).standard_normal((50, 12))

    class Killed(Exception):
        pass

    class Kept:
        def __init__(self, calls: int) -> None:
            self.states: dict = {}
            self.calls = calls

        def load(self, name: str):
            return self.states.get(name)

        def save(self, name: str, snapshot) -> None:
            self.states[name] = snapshot()
            self.calls -= 1
            if self.calls == 0:
                raise Killed

    full = evaluate_all_to_all(faces, labels, distractors, far_targets=[0.01])
    for calls in (1, 5, 10, 12, 14):
        state_store = Kept(calls)
        with pytest.raises(Killed):
            evaluate_all_to_all(
                faces, labels, distractors, far_targets=[0.01], state_store=state_store
            )
        again = evaluate_all_to_all(
            faces, labels, distractors, far_targets=[0.01], state_store=state_store
        )
        assert again == full


@pytest.mark.parametrize(
    ("labels", "far", "message"),
    [
        ([0, 0, -1], 0.1, "must not be negative, got -1"),
        ([0, 1, 2], 0.1, "0 genuine"),
        ([0, 0, 0], 0.1, "0 impostor"),
        ([0, 0, 1], 1.5, "between 0 and 1, got 1.5"),
    ],
)
def test_bad_input_is_refused(labels: list[int], far: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_all_to_all(_angle(0, 10, 90), np.array(labels), far_targets=[far])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": (0, 5)}, r"ranks must be integers of at least 1, got \[0, 5\]"),
        ({"ranks": ()}, "ranks must be integers of at least 1"),
        ({"identification_far_targets": (1.5,)}, r"FAR target must be between 0 and 1, got 1\.5"),
        ({"far_targets": ()}, "far_targets must not be empty"),
        ({"resamples": 1}, "resamples must be at least 2, or 0 for no intervals, got 1"),
    ],
)
def test_settings_are_checked_before_the_sweeps(settings: dict, message: str) -> None:
    def progress(done: int, total: int) -> None:
        pytest.fail("the sweep has begun")

    faces, labels = _faces(people=4)
    with pytest.raises(ValueError, match=message):
        evaluate_all_to_all(
            faces, labels, faces[:3], **{"far_targets": [0.1], **settings}, progress=progress
        )


def test_no_faces_are_refused() -> None:
    with pytest.raises(ValueError, match="0 genuine and 0 impostor pairs"):
        evaluate_all_to_all(np.empty((0, 8)), np.array([], int))
