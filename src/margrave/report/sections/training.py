"""How runs trained: loss, target cosine, feature norm, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Text

Lines = Sequence[Mapping[str, Any]]
CURVES = (
    ("loss", "loss", "Mean loss of the step's images."),
    ("target_cosine", "target cosine", "Mean cosine between an image and its class center."),
    ("feature_norm", "feature norm", "Mean norm of the unnormalized embeddings."),
    ("adaptive_scale.scale", "adapted scale", "AdaCos's scale; it falls as classes are learned."),
    ("sigmoid_bias", "learned bias", "The bias b of every class's sigmoid."),
)
MAX_SETS = 20
"""Number of evaluation sets that are drawn."""
MAX_POINTS = 200
"""Points per curve at most; more would not be seen."""


def training_section(runs: Mapping[str, Lines]) -> Section:
    """The training curves of runs, by name, and why one stopped."""
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
        for pairs, own in list(by_set.items())[:MAX_SETS]:
            series = pairs if len(runs) == 1 else f"{name}, {pairs}"
            rows += curve_rows(series, own, "evaluation", "accuracy")
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
    """A run's values of one key over epochs, thinned out."""
    own = [line for line in lines if line["kind"] == kind]
    own = [line for line in own if is_number(line.get(key)) and is_number(line["epoch"])]
    every = -(-len(own) // MAX_POINTS) or 1
    kept = own[::every] + ([own[-1]] if own and (len(own) - 1) % every else [])
    return [{"series": name, "x": float(line["epoch"]), "y": float(line[key])} for line in kept]


def is_number(value: Any) -> bool:
    """Whether a value from a file can be drawn; an integer there may have thousands of digits."""
    return isinstance(value, int | float) and abs(value) <= charts.MAX_VALUE
