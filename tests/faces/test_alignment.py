from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from margrave.faces import TEMPLATE, align_face, fit_similarity_transform


@given(
    angle=st.floats(-np.pi, np.pi),
    scale=st.floats(0.05, 20),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
)
def test_a_similarity_is_found_again(
    angle: float, scale: float, shift: tuple[float, float]
) -> None:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = TEMPLATE @ turn.T + np.array(shift)
    matrix = fit_similarity_transform(TEMPLATE, moved)
    np.testing.assert_allclose(matrix, np.column_stack([turn, shift]), rtol=1e-7, atol=1e-6)


def test_as_opencv_estimates_it() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        points = TEMPLATE * generator.uniform(0.5, 3) + generator.normal(0, 2, (5, 2))
        ours = fit_similarity_transform(points, TEMPLATE)
        # Least squares over the similarities of its own sort, for which it needs many tries.
        residual = np.linalg.norm(points @ ours[:, :2].T + ours[:, 2] - TEMPLATE)
        theirs = cv2.estimateAffinePartial2D(points, TEMPLATE, method=cv2.LMEDS)[0]
        their_residual = np.linalg.norm(points @ theirs[:, :2].T + theirs[:, 2] - TEMPLATE)
        assert residual <= their_residual + 1e-9


def test_landmarks_land_on_the_template() -> None:
    generator = np.random.default_rng(1)
    image = generator.integers(0, 60, (300, 400, 3)).astype(np.uint8)
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    landmarks = (TEMPLATE - 56) @ turn.T + (210, 150)
    for x, y in landmarks:
        cv2.circle(image, (round(x), round(y)), 5, (255, 255, 255), -1)
    for size in (112, 224):
        crop = align_face(image, landmarks, size)
        for x, y in TEMPLATE * size / 112:
            assert crop[round(y), round(x)].min() > 200


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan)])
def test_points_without_a_direction_are_refused(points: np.ndarray) -> None:
    with pytest.raises(ValueError, match="so no alignment exists"):
        fit_similarity_transform(points, TEMPLATE)
