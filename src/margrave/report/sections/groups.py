"""Errors of demographic groups at one global threshold."""

from __future__ import annotations

from collections.abc import Sequence

from margrave.evaluation import Result, group_errors, inequality
from margrave.report import charts
from margrave.report.contents import Chart, Section, Table, Text

FAR = 0.01


def groups_section(results: Sequence[Result], far: float = FAR) -> Section:
    """Each group's FMR and FNMR with intervals, and then the indices of inequality.

    Args:
        results: the results of the protocol ``groups``: one per group, and a summary.
        far: the FMR over all groups' impostor pairs that determines the threshold.
    """
    title = "Groups"
    scores = {each.name: each.scores for each in results if each.scores is not None}
    if not any(each.protocol == "groups" for each in results) or len(scores) < 2:
        return Section(title)
    threshold, rows = group_errors(scores, far)
    index = inequality(rows)
    table = Table(
        f"Errors at one threshold for all groups, cosine {threshold:.4f} (FMR {far:g} over all)",
        ["group", "genuine pairs", "impostor pairs", "FMR", "95 % interval", "FNMR",
         "95 % interval"],
        [
            [each.group, f"{each.genuine:,}", f"{each.impostors:,}", _percent(each.fmr),
             _range(each.fmr_interval), _percent(each.fnmr), _range(each.fnmr_interval)]
            for each in rows
        ],
    )  # fmt: skip
    indices = Table(
        "How unequal the rows are; an index alone says nothing",
        ["index", "value", "meaning"],
        [
            ["FDR", f"{index.fdr:.4f}", "1 − mean of the largest differences; 1 if equal"],
            ["GARBE", f"{index.garbe:.4f}", "Gini coefficients of FMR and FNMR; 0 if equal"],
            ["FMR, max / geometric mean", _ratio(index.fmr_ratio), "1 if equal"],
            ["FNMR, max / geometric mean", _ratio(index.fnmr_ratio), "1 if equal"],
        ],
    )
    parts = []
    for rate in ("fmr", "fnmr"):
        name = "false match rate" if rate == "fmr" else "false non-match rate"
        values = [
            {"name": each.group, "x": getattr(each, rate),
             "low": getattr(each, f"{rate}_interval")[0],
             "high": getattr(each, f"{rate}_interval")[1]}
            for each in rows
        ]  # fmt: skip
        chart = charts.ranges(values, name, x_format=".2~%", description=f"{name} by group")
        parts.append(Chart(f"{name.capitalize()} by group, with 95 % intervals.", chart))
    note = (
        "Pairs of different groups are not in these lists, so the FMR between groups, which is "
        "usually lower, is not measured. Intervals take pairs as independent (ISO/IEC 19795-10)."
    )
    return Section(title, [*parts, table, indices, Text(note, "note")])


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
