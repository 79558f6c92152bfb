"""Thresholds, calibrations and references hold nothing but what they may."""

from __future__ import annotations

from typing import Any

import pytest

from margrave.models import Calibration, OperatingPoint, ScoreReference

NAN = float("nan")
CALIBRATION = {"slope": 10.0, "offset": -5.0, "cllr": 0.1, "cllr_min": 0.1, "people": 10}


@pytest.mark.parametrize(
    "changed",
    [
        {"far": True},
        {"far": 1},
        {"threshold": NAN},
        {"threshold_interval": 3},
        {"threshold_interval": (0.2, NAN)},
        {"threshold_interval": (0.4, 0.2)},
        {"true_accept_interval": ("0", "1")},
        {"true_accept_rate": NAN},
        {"true_accept_rate": 1.5},
        {"impostors": -4},
        {"impostors": True},
        {"measured_on": 3},
        {"flips": 1},
    ],
    ids=str,
)
def test_impossible_operating_points_are_named(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(ValueError, match=rf"operating point: {name} = "):
        OperatingPoint(**{"far": 1e-3, "threshold": 0.4, **changed})


@pytest.mark.parametrize("changed", [{"slope": 0.0}, {"cllr": NAN}, {"people": 2.5}], ids=str)
def test_impossible_calibrations_are_named(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="calibration: "):
        Calibration(**{**CALIBRATION, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"calibration": 3},
        {"genuine": "many"},
        {"impostors": [NAN]},
        {"norm_percentiles": [1.0, 2.0]},
        {"far_thresholds": [(0.1, 0.2, 0.3)]},
        {"measured_on": None},
        {"flips": "no"},
    ],
    ids=str,
)
def test_impossible_references_are_named(changed: dict[str, Any]) -> None:
    (name,) = changed
    with pytest.raises(ValueError, match=f"reference: .*{name}"):
        ScoreReference(**{"measured_on": "test", **changed})


def test_what_json_gives_is_read() -> None:
    reference = ScoreReference(
        measured_on="test",
        calibration=CALIBRATION,  # pyright: ignore[reportArgumentType]
        far_thresholds=[[0.1, 0.3]],  # pyright: ignore[reportArgumentType]
    )
    assert reference.calibration == Calibration(**CALIBRATION)
    assert reference.far_thresholds == ((0.1, 0.3),)
