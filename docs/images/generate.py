"""Draws the figures of the pages on adaptive margins, from the losses' own code.

python docs/images/generate.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert

from margrave.losses import LOSSES
from margrave.report import charts, loss_curves

HERE = Path(__file__).parent
ANGLES = np.linspace(0, np.pi, 361)
INK, PAPER = "#1d2329", "#ffffff"


def main() -> None:
    """Write every figure."""
    for name, spec in figures().items():
        text = json.dumps({**spec, "width": 620, "background": PAPER})
        # Viewers may lack the font that the text's width was measured with.
        text = text.replace(charts.FONT, "Arial, Liberation Sans, sans-serif")
        text = text.replace("currentColor", INK).replace('"transparent"', f'"{PAPER}"')
        (HERE / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(text), encoding="utf-8")
        print(f"{name}.svg")


def figures() -> dict[str, dict[str, Any]]:
    """The figures by name."""
    sv_softmax = [
        ("plain cosine", "normface", {}, {}),
        *(
            (f"weight t = {weight}", "sv_softmax", {"hard_weight": weight}, {})
            for weight in (1.12, 1.3)
        ),
    ]
    curricularface = [
        ("plain cosine", "normface", {}, {}),
        *((f"t = {t}", "curricularface", {}, {"mean_target_cosine": t}) for t in (0.0, 0.3, 0.6)),
    ]
    adaface = [
        (f"norm {norm:g}: quality {quality}", "adaface", {}, {"feature_norm": norm})
        for norm, quality in ((5.0, "−1"), (20.0, "0"), (35.0, "+1"))
    ]
    kappaface = [
        ("plain cosine", "normface", {}, {}),
        *(
            (f"ψ = {weight}", "kappaface", {}, {"margin_weight": weight})
            for weight in (0.2, 0.6, 1.0)
        ),
    ]
    return {
        "sv_softmax": curve("negatives", sv_softmax),
        "curricularface": curve("negatives", curricularface),
        "adaface": gradient(adaface),
        "kappaface": curve("target", kappaface),
    }


def curve(what: str, losses: list[tuple[str, str, dict, dict]]) -> dict[str, Any]:
    """Modified cosines of negatives (for a target at 50 degrees) or of targets."""
    rows = []
    x = "θ_j in degrees" if what == "negatives" else "θ_y in degrees"
    y = "modified cosine N" if what == "negatives" else "modified cosine T"
    for label, kind, settings, context in losses:
        loss = LOSSES.create({"kind": kind, **settings})
        if what == "negatives":
            values = loss_curves.modified_negatives(loss, np.cos(ANGLES), 50, context)
        else:
            values = loss_curves.modified_targets(loss, np.cos(ANGLES), context)
        rows += [
            {"series": label, "x": float(angle), "y": float(value)}
            for angle, value in zip(np.degrees(ANGLES), values, strict=True)
        ]
    return charts.lines(rows, x, y, x_domain=(0, 180), description=f"{y} against {x}")


def gradient(losses: list[tuple[str, str, dict, dict]]) -> dict[str, Any]:
    """The gradient's scale."""
    x, y = "θ_y in degrees", "scale of the gradient"
    rows = [
        {"series": label, "x": float(angle), "y": float(value)}
        for label, kind, settings, context in losses
        for angle, value in zip(
            loss_curves.GRADIENT_DEGREES,
            loss_curves.gradient_scales(LOSSES.create({"kind": kind, **settings}), context),
            strict=True,
        )
    ]
    return charts.lines(rows, x, y, x_domain=(0, 120), description=f"{y} against {x}")


if __name__ == "__main__":
    main()
