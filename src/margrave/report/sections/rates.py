"""Sections on figures: a table of all, rates over operating points, parts of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from margrave.evaluation import Figure, Result
from margrave.evaluation.figure_text import TOO_FEW, value_text
from margrave.report import charts
from margrave.report.contents import Block, Chart, Section, Text
from margrave.report.figures import figures_table, strata_table
from margrave.report.naming import result_names
from margrave.report.sections.training import is_number

MIN_POINTS = 3
"""Smallest number of operating points that a curve is drawn for."""


def figures_section(result: Result) -> Section:
    """All figures of a result as a table."""
    blocks: list[Block] = [figures_table(result)] if result.figures else []
    if any(figure.too_few and not figure.stratum for figure in result.figures):
        blocks.append(Text(TOO_FEW, "note"))
    return Section("Figures", blocks)


def rates_section(results: Sequence[Result]) -> Section:
    """A curve for each metric that results report at several operating points.

    Identification rates over ranks are the CMC curve; over FPIRs, the open-set curve.
    """
    blocks: list[Block] = []
    curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
    is_percent: dict[tuple[str, str], bool] = {}
    # `curves_section` draws results with pair scores.
    drawn = [result for result in results if result.scores is None]
    for result_name, result in zip(result_names(drawn), drawn, strict=True):
        for figure in result.figures:
            numbers = {name: float(value) for name, value in figure.at.items() if is_number(value)}
            if figure.stratum or figure.value is None or len(numbers) != 1:
                continue
            ((axis, x),) = numbers.items()
            conditions = [value for value in figure.at.values() if isinstance(value, str)]
            series = ", ".join([result_name, *conditions])
            row: dict[str, Any] = {"series": series, "x": x, "y": figure.value}
            if figure.interval is not None:
                row |= {"low": figure.interval[0], "high": figure.interval[1]}
            curves.setdefault((figure.metric, axis), []).append(row)
            is_percent[figure.metric, axis] = figure.percent
    for (metric, axis), rows in curves.items():
        rows = [row for row in rows if row["x"] > 0]
        if len({row["x"] for row in rows}) < MIN_POINTS:
            continue
        chart = charts.lines(
            rows,
            axis,
            metric,
            x_scale="log",
            x_format="~g",
            y_format=".1~%" if is_percent[metric, axis] else None,
            points=True,
            description=f"{metric} against {axis}",
        )
        blocks.append(Chart(f"{metric} against {axis}, with 95 % intervals if known.", chart))
    return Section("Rates", blocks)


def strata_section(result: Result) -> Section:
    """The figures by part of the data, such as a range of quality, a pose or a group."""
    table = strata_table(result)
    if table is None:
        return Section("Parts of the data")
    accuracies = [
        figure for figure in result.figures if figure.stratum and figure.metric == "accuracy"
    ]
    blocks: list[Block] = [table]
    if len(accuracies) > 1:
        blocks.insert(0, _parts_chart(accuracies))
    return Section("Parts of the data", blocks)


def _parts_chart(figures: Sequence[Figure]) -> Chart:
    rows = [
        {"name": figure.stratum, "x": figure.value,
         "low": (figure.interval or (figure.value, figure.value))[0],
         "high": (figure.interval or (figure.value, figure.value))[1]}
        for figure in figures if figure.value is not None
    ]  # fmt: skip
    text = ", ".join(f"{figure.stratum} {value_text(figure)}" for figure in figures)
    chart = charts.ranges(rows, "accuracy", x_format=".1%", description=f"Accuracy by part: {text}")
    return Chart("Accuracy by part of the data, at the thresholds set on all data.", chart)
