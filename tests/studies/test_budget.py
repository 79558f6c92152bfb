from __future__ import annotations

import pytest
from study_examples import STUDY

from margrave.studies import read_study
from margrave.studies.budget import prepare


@pytest.mark.parametrize("batch_size", [16, 48])
def test_trainings_shorter_than_the_warm_up_are_measured(batch_size: int) -> None:
    """One epoch of the 48 images takes three steps, or one."""
    training = {"epochs": 1, "batch_size": batch_size}
    config = read_study([STUDY], {"run": {"training": training}})
    messages: list[str] = []
    prepared = prepare(config, 600.0, 1, messages.append).prepared
    assert prepared["epochs"] >= 1
    assert "an epoch of the slowest loss takes" in messages[-1]
