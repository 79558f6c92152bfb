"""Learning rates over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from margrave.training import ScheduleSettings
from margrave.training.schedule import learning_rate_factor


@pytest.mark.parametrize(
    ("settings", "epoch", "factor"),
    [
        ({"kind": "constant"}, 7, 1.0),
        ({"kind": "step", "milestones": (10, 18, 22)}, 9.99, 1.0),
        ({"kind": "step", "milestones": (10, 18, 22)}, 22, 1e-3),
        ({"kind": "cosine"}, 10, 0.5),
        ({"kind": "cosine", "warmup_epochs": 4}, 12, 0.5),
        ({"kind": "polynomial", "power": 2}, 10, 0.25),
        ({"kind": "polynomial", "warmup_epochs": 2}, 1, 0.5),
        ({"kind": "cosine", "warmup_epochs": 99}, 5, 0.5),
    ],
)
def test_known_points(settings: dict, epoch: float, factor: float) -> None:
    assert learning_rate_factor(ScheduleSettings(**settings), epoch, 20) == pytest.approx(factor)


@given(
    kind=st.sampled_from(["constant", "step", "cosine", "polynomial"]),
    warmup=st.floats(0, 30),
    epoch=st.floats(0, 20),
)
def test_the_factor_stays_between_0_and_1(kind: str, warmup: float, epoch: float) -> None:
    schedule = ScheduleSettings.model_validate(
        {"kind": kind, "warmup_epochs": warmup, "milestones": (3, 9)}
    )
    assert 0 <= learning_rate_factor(schedule, epoch, 20) <= 1
