"""Sections on what losses adapted in training: margins, hard negatives, running statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Text
from margrave.report.sections.training import Lines, curve_rows
from margrave.training import read_adaptation

MIN_CORRELATION = 0.6
"""A rank correlation of norm and quality above this, in magnitude, is reported as a trend."""
MAX_STATISTICS = 20
"""Largest number of running statistics that are drawn."""
MIN_SHARE = 1e-5
"""Below this share of hard negatives, a loss is taken to have none."""


def adaptation_section(runs: Mapping[str, Lines], details: bool = True) -> Section:
    """What the loss of each run adapted in each epoch, from the run's metrics lines.

    Args:
        runs: run name -> metrics lines.
        details: also draw each class and each sample of the last batch, for runs whose margin
            differs between samples or classes.
    """
    records = {name: adaptation_records(lines) for name, lines in runs.items()}
    records = {name: lines for name, lines in records.items() if lines}
    title = "What the loss adapted"
    if not records:
        text = (
            "These runs contain no record of what the loss adapts: they were trained by an old "
            "version of Margrave, or have not finished an epoch."
        )
        has_training = any(line["kind"] == "training" for lines in runs.values() for line in lines)
        return Section(title, [Text(text, "note")] if has_training else [])
    blocks: list[Block] = [_margin_chart(records)]
    blocks += _hard_negative_charts(records)
    blocks += _statistic_charts({name: runs[name] for name in records})
    if details:
        for name, lines in records.items():
            blocks += _sample_charts(name, lines[-1], len(records) > 1)
            blocks += _class_charts(name, lines[-1], len(records) > 1)
    return Section(title, blocks)


def adaptation_records(lines: Lines) -> list[dict[str, Any]]:
    """The lines of kind ``adaptation``, without damaged ones."""
    records = [read_adaptation(line) for line in lines if line["kind"] == "adaptation"]
    return [
        {**record.model_dump(), "kind": "adaptation"} for record in records if record is not None
    ]


def _margin_chart(records: Mapping[str, Lines]) -> Chart:
    # A line's margin is five quantiles: 5, 25, 50, 75 and 95 %.
    rows = [
        {"series": name, "x": line["epoch"], "y": line["margin"][2],
         "low": line["margin"][0], "high": line["margin"][4]}
        for name, lines in records.items() for line in lines if line["margin"] is not None
    ]  # fmt: skip
    chart = charts.lines(
        rows, "epoch", "margin", points=True, description="Margin on the target cosine by epoch"
    )
    caption = (
        "The margin cosθ_y − T, which the loss subtracts from the target cosine. Line: median of "
        "each epoch's last batch; band: 5th to 95th percentile. A wide band means that the loss "
        "treats samples differently."
    )
    return Chart(caption, chart)


def _hard_negative_charts(records: Mapping[str, Lines]) -> list[Block]:
    blocks: list[Block] = []
    with_hard_negatives = {
        name: lines
        for name, lines in records.items()
        if any((line.get("hard_share") or 0) > MIN_SHARE for line in lines)
    }
    for key, title, caption in (
        ("hard_share", "share of hard negatives",
         "Share of all negatives that the loss re-weights as hard (support vectors)."),
        ("hard_change", "change of hard negatives' cosine",
         "Mean of N_j − cosθ_j over hard negatives: above 0 the loss pushes them away more "
         "strongly, below 0 less, as CurricularFace does early in training."),
    ):  # fmt: skip
        rows = [
            row for name, lines in with_hard_negatives.items()
            for row in curve_rows(name, lines, "adaptation", key)
        ]  # fmt: skip
        if rows:
            chart = charts.lines(rows, "epoch", title, points=True, description=f"{title} by epoch")
            blocks.append(Chart(caption, chart))
    return blocks


def _statistic_charts(runs: Mapping[str, Lines]) -> list[Block]:
    """Charts of running statistics, such as CurricularFace's t.

    Their keys in the training lines contain a dot. Counters and seeds are not drawn.
    """
    keys = dict.fromkeys(
        key
        for lines in runs.values()
        for line in lines
        if line["kind"] == "training"
        for key in line
        if "." in key and not key.endswith((".updates", ".count", ".seed"))
    )
    blocks: list[Block] = []
    for key in list(keys)[:MAX_STATISTICS]:
        # Version 0.1 called a std "deviation".
        title = key.replace(".", ": ").replace("_", " ").replace("deviation", "std")
        rows = [
            row for name, lines in runs.items()
            for row in curve_rows(name, lines, "training", key)
        ]  # fmt: skip
        if len({row["x"] for row in rows}) > 1:
            chart = charts.lines(rows, "epoch", title, description=f"{title} over epochs")
            blocks.append(Chart(f"The running statistic that the loss reads: {title}.", chart))
    return blocks


def _sample_charts(name: str, line: Mapping[str, Any], several_runs: bool) -> list[Block]:
    samples = line.get("samples") or {}
    rows = [
        {"x": norm, "y": margin, "shade": cosine}
        for norm, margin, cosine in zip(
            samples.get("feature_norm", ()),
            samples.get("margin", ()),
            samples.get("target_cosine", ()),
            strict=False,
        )
        if None not in (norm, margin, cosine)
    ]
    if not rows or max(abs(row["y"] - rows[0]["y"]) for row in rows) < 1e-4:
        return []
    chart = charts.scatter(
        rows,
        "feature norm",
        "margin",
        shade="target cosine",
        description=f"Margin against feature norm of single samples, {name}",
    )
    prefix = f"{name}: " if several_runs else ""
    caption = (
        f"{prefix}The margin of each sample in the last batch against its feature norm; the color "
        "is the target cosine. A slope within one color is the effect of the norm; a difference "
        "between colors at one norm is the effect of the angle."
    )
    return [Chart(caption, chart)]


def _class_charts(name: str, line: Mapping[str, Any], several_runs: bool) -> list[Block]:
    classes = line.get("classes") or {}
    if not {"concentration", "margin_weight", "images"} <= classes.keys():
        return []
    rows = [
        {"x": kappa, "y": weight, "shade": images}
        for kappa, weight, images in zip(
            classes["concentration"], classes["margin_weight"], classes["images"], strict=True
        )
        # A class with a single image has no concentration.
        if None not in (kappa, weight, images) and images > 1
    ]
    chart = charts.scatter(
        rows,
        "concentration κ",
        "margin weight ψ",
        shade="images",
        description=f"Margin weight against concentration of classes, {name}",
    )
    prefix = f"{name}: " if several_runs else ""
    caption = (
        f"{prefix}Each class's margin weight against the concentration of its features; the color "
        "is its number of training images. Scattered and small classes get larger margins."
    )
    return [Chart(caption, chart)]


def norm_quality_section(curve: Mapping[str, Any] | None) -> Section:
    """The feature norm against the images' true quality.

    Args:
        curve: the result's curve ``norm by quality``, from low to high quality. The section is
            empty if the curve is None or lacks a column.
    """
    title = "Feature norm and true quality"
    columns = ("quality", "median", "lower quartile", "upper quartile")
    if not curve or not set(columns) <= curve.keys():
        return Section(title)
    rows = [
        {"series": "median norm", "x": quality, "y": median, "low": low, "high": high}
        for quality, median, low, high in zip(*(curve[name] for name in columns), strict=False)
    ]
    chart = charts.lines(
        rows, "true quality", "feature norm", points=True, description="Feature norm by quality"
    )
    correlation = rank_correlation([row["y"] for row in rows])
    trend = "The norm does not clearly follow quality here."
    if correlation > MIN_CORRELATION:
        trend = "The norm rises with quality, as AdaFace assumes."
    elif correlation < -MIN_CORRELATION:
        trend = "The norm falls with quality, contrary to AdaFace's assumption."
    caption = (
        "Median and quartiles of the feature norm, for images grouped by their true quality. "
        f"{trend}"
    )
    return Section(title, [Chart(caption, chart)])


def rank_correlation(values: Sequence[float]) -> float:
    """Spearman's correlation of values and their positions, in [-1, 1].

    It is 0 for fewer than three values, or if all values are equal.

    >>> rank_correlation([1.0, 5.0, 7.0]), rank_correlation([2.0, 2.0, 2.0])
    (1.0, 0.0)
    """
    if len(values) < 3:
        return 0.0
    ranks = stats.rankdata(values)
    if np.ptp(ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks, np.arange(len(values)))[0, 1])
