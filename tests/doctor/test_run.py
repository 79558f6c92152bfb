"""Curves that are judged line by line, as older and interrupted runs wrote them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from margrave.config import RunConfig, read_config
from margrave.doctor.run import check_curve

CLASSES = 1000


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return read_config([], {})


def lines(losses: list[float | None], **values: Any) -> list[dict[str, Any]]:
    usual = {"gradient_norm": 1.0, "feature_norm": 10.0, "learning_rate": 0.1}
    return [
        {"kind": "training", "step": step, "epoch": 1e6, "loss": loss, **usual, **values}
        for step, loss in enumerate(losses, start=1)
    ]


def faults(curve: list[dict[str, Any]], config: RunConfig) -> list[str]:
    return [finding.fault for finding in check_curve(curve, config, 10_000, CLASSES)]


FALLING = [20.0 / step for step in range(1, 20)]


def test_a_skipped_step_of_float16_is_healthy(config: RunConfig) -> None:
    curve = lines(FALLING)
    curve[3]["gradient_norm"] = None
    assert faults(curve, config) == ["non_finite_loss"]
    for line in curve:
        line["loss_scale"] = 2.0**16
    assert faults(curve, config) == []
    curve[5]["loss"] = None
    assert faults(curve, config) == ["non_finite_loss"]


def test_a_low_loss_that_stays_low_is_no_guessing(config: RunConfig) -> None:
    assert faults(lines([0.1] * 20), config) == []
    guessing = list(check_curve(lines([math.log(CLASSES) + 1] * 20), config, 10_000, CLASSES))
    assert [finding.fault for finding in guessing] == ["stuck_loss"]
    assert "no better than guessing" in guessing[0].message


def test_lines_may_lack_what_is_not_required(config: RunConfig) -> None:
    bare = [
        {name: line[name] for name in ("kind", "step", "epoch", "loss")} for line in lines(FALLING)
    ]
    assert faults(bare, config) == []
    assert faults(lines(FALLING, feature_norm="large"), config) == []
    assert faults([{"kind": "stopped", "step": 3}], config) == ["non_finite_loss"]
