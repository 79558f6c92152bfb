"""The section on training: loss, target cosine, feature norm and accuracy over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Text

Lines = Sequence[Mapping[str, Any]]
"""The lines of a run's metrics file."""
# Key in the training lines, title of the vertical axis, caption.
CURVES = (
    ("loss", "loss", "Mean loss of the step's images."),
    ("target_cosine", "target cosine", "Mean cosine between an image and its class center."),
    ("feature_norm", "feature norm", "Mean norm of the unnormalized embeddings."),
    ("adaptive_scale.scale", "adapted scale", "AdaCos's scale; it falls as classes are learned."),
    ("sigmoid_bias", "learned bias", "The bias b that the sigmoids of all classes share."),
)
MAX_SETS = 20
"""Largest number of evaluation sets per run that are drawn."""
MAX_POINTS = 200
"""Curves are thinned to about this many points; more would not be visible."""


def training_section(runs: Mapping[str, Lines]) -> Section:
    """The training curves of runs, and why runs stopped early."""
    blocks: list[Block] = []
    for key, title, caption in CURVES:
        rows = []
        for name, lines in runs.items():
            rows += curve_rows(name, lines, "training", key)
        if rows:
            chart = charts.lines(rows, "epoch", title, description=f"{title} over epochs")
            blocks.append(Chart(caption, chart))
    rows = []
    for name, lines in runs.items():
        by_set: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            if line["kind"] == "evaluation":
                by_set.setdefault(str(line["set"]), []).append(line)
        for set_name, set_lines in list(by_set.items())[:MAX_SETS]:
            series = set_name if len(runs) == 1 else f"{name}, {set_name}"
            rows += curve_rows(series, set_lines, "evaluation", "accuracy")
    if len({row["x"] for row in rows}) > 1:
        chart = charts.lines(
            rows, "epoch", "accuracy", y_format=".1%", points=True, description="Accuracy by epoch"
        )
        blocks.append(Chart("Accuracy on the evaluation sets.", chart))
    for name, lines in runs.items():
        stopped = [line for line in lines if line["kind"] == "stopped"]
        if stopped:
            blocks.append(Text(f"{name} stopped: {stopped[-1].get('reason', '')}", "verdict"))
    return Section("Training", blocks)


def curve_rows(name: str, lines: Lines, kind: str, key: str) -> list[dict[str, Any]]:
    """Chart rows of a metric over epochs, from the lines of one kind, thinned to ``MAX_POINTS``."""
    valid = [line for line in lines if line["kind"] == kind]
    valid = [line for line in valid if is_number(line.get(key)) and is_number(line["epoch"])]
    stride = -(-len(valid) // MAX_POINTS) or 1
    thinned = valid[::stride] + ([valid[-1]] if valid and (len(valid) - 1) % stride else [])
    return [{"series": name, "x": float(line["epoch"]), "y": float(line[key])} for line in thinned]


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number that a chart can draw.

    It must be finite and not too large: an integer in a file may have thousands of digits.
    """
    return isinstance(value, int | float) and abs(value) <= charts.MAX_VALUE
