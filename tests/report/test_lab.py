"""The lab's tables against the losses' own code."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest

from margrave.losses import LOSSES, ArcFace, Loss
from margrave.report import lab, lab_tables, loss_curves
from margrave.report.lab import TOLERANCE, read_curve
from margrave.report.loss_curves import STEPS

KINDS = sorted(set(LOSSES) - {"softmax", "adacos"})  # which have no curve over angles


@pytest.fixture(scope="module")
def tables() -> dict:
    return lab_tables()


def test_every_loss_of_cosines_is_in_the_lab(tables: dict) -> None:
    assert sorted(tables["losses"]) == KINDS
    assert len(json.dumps(tables, allow_nan=False)) < 2_100_000


@pytest.mark.parametrize("kind", KINDS)
def test_curves_interpolate_the_losses_own_values(tables: dict, kind: str) -> None:
    table = tables["losses"][kind]
    axes = {axis["name"]: axis for axis in (*table["parameters"], *tables["contexts"])}
    generator = np.random.default_rng(0)
    for part in ("target", "negatives"):
        names, lengths = table[part]["axes"], table[part]["lengths"]
        shape = [len(axes[name]["values"]) for name in names]
        assert len(lengths) == np.prod(shape, dtype=int)
        for number in generator.choice(len(lengths), min(6, len(lengths)), replace=False):
            indices = np.unravel_index(number, shape) if names else ()
            values = {
                name: axes[name]["values"][index]
                for name, index in zip(names, indices, strict=True)
            }
            context = {each["name"] for each in tables["contexts"]}
            own = {name: value for name, value in values.items() if name not in context}
            loss = LOSSES.create({"kind": kind, **own})
            rest = {name: value for name, value in values.items() if name in context}
            # Between the lab's own grid points.
            angles = (np.arange(STEPS) + 0.5) * np.pi / STEPS
            if part == "target":
                exact = loss_curves.modified_targets(loss, np.cos(angles), rest)
            else:
                degrees = rest.pop("target_angle", 50)
                exact = loss_curves.modified_negatives(loss, np.cos(angles), degrees, rest)
            curve = read_curve(table[part], int(number))
            error = abs((curve[:-1] + curve[1:]) / 2 - exact)
            # Where a curve jumps between two grid points, no line between them is right.
            assert np.sort(error)[-4] < TOLERANCE, (part, values)


def test_sliders_start_at_the_losses_own_values(tables: dict) -> None:
    for kind, table in tables["losses"].items():
        loss = LOSSES.create({"kind": kind})
        for axis in table["parameters"]:
            assert axis["values"][axis["default"]] == getattr(loss, axis["name"])
    names = {kind: [axis["name"] for axis in table["parameters"]]
             for kind, table in tables["losses"].items()}  # fmt: skip
    assert names["adaface"] == ["margin", "concentration"]
    assert names["sv_softmax"] == ["margin", "hard_weight"]
    assert "gamma" in names["focal"]


def test_axes_are_what_each_loss_adapts_to(tables: dict) -> None:
    losses = tables["losses"]
    assert "feature_norm" in losses["adaface"]["target"]["axes"]
    assert "margin_weight" in losses["kappaface"]["target"]["axes"]
    assert losses["curricularface"]["negatives"]["axes"][1:] == [
        "mean_target_cosine",
        "target_angle",
    ]
    assert losses["arcface"]["negatives"]["axes"] == []
    assert "gamma" in losses["focal"]["gradient"]["axes"]


def test_the_boundary_of_arcface_is_the_angle_plus_its_margin(tables: dict) -> None:
    table = tables["losses"]["arcface"]
    margins = table["parameters"][0]["values"]
    number = margins.index(0.5) * len(table["parameters"][1]["values"])
    part = table["boundary"]
    values = np.frombuffer(lab.base64.b64decode(part["numbers"]), "<i2") * part["factor"]
    row = values[number * part["length"] :][: part["length"]]
    expected = np.array(loss_curves.GRADIENT_DEGREES) + np.degrees(0.5)
    assert row == pytest.approx(expected, abs=0.6)


def test_the_gradient_is_the_slope_times_the_missing_probability() -> None:
    loss = ArcFace(margin=0.3)
    angle = np.radians(60.0)
    own = np.exp(64 * np.cos(angle + 0.3))
    others = np.exp(64 * np.cos(np.radians(70.0))) + 998
    expected = (1 - own / (own + others)) * np.sin(angle + 0.3) / np.sin(angle)
    assert loss_curves.gradient_scales(loss, {})[
        loss_curves.GRADIENT_DEGREES.index(60)
    ] == pytest.approx(expected)


@dataclass(frozen=True, kw_only=True)
class Outside(Loss):
    """A loss from outside that reads a statistic of its own."""

    def target(self, cosine, context):  # type: ignore[no-untyped-def]
        return cosine - context["something"]


def test_losses_that_cannot_be_drawn_are_left_out_or_refused() -> None:
    assert list(lab_tables({"mine": Outside(), "arcface": {"kind": "arcface"}})["losses"]) == [
        "arcface"
    ]
    with pytest.raises(ValueError, match="none of mine, softmax can be drawn"):
        lab_tables({"mine": Outside(), "softmax": {"kind": "softmax"}})
