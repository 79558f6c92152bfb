"""Errors of demographic groups at one global threshold."""

from __future__ import annotations

from collections.abc import Sequence

from margrave.evaluation import Result, group_errors, inequality
from margrave.report import charts
from margrave.report.contents import Chart, Section, Table, Text

FAR = 0.01
"""The default FAR over all groups that sets the threshold."""


def groups_section(groups: Sequence[Result], far: float = FAR) -> Section:
    """Each group's FMR and FNMR with intervals, followed by indices of inequality between groups.

    Args:
        groups: one result per group, with pair scores, from one evaluation of the protocol
            ``groups``.
        far: the target FAR (the same rate as FMR) over the impostor pairs of all groups; it sets
            the threshold.
    """
    title = "Groups"
    scores = {group.name: group.scores for group in groups if group.scores is not None}
    if len(scores) < 2:
        return Section(title)
    threshold, rows = group_errors(scores, far)
    inequalities = inequality(rows)
    table = Table(
        f"Errors at one threshold, cosine {threshold:.4f} (FMR {far:g} over all groups)",
        ["group", "genuine pairs", "impostor pairs", "FMR", "95 % interval", "FNMR",
         "95 % interval"],
        [
            [row.group, f"{row.genuine:,}", f"{row.impostors:,}", _percent(row.fmr),
             _range(row.fmr_interval), _percent(row.fnmr), _range(row.fnmr_interval)]
            for row in rows
        ],
    )  # fmt: skip
    inequality_table = Table(
        "How unequal the groups are; read these indices only together with the groups' errors",
        ["index", "value", "meaning"],
        [
            [
                "FDR",
                f"{inequalities.fdr:.4f}",
                "1 − (largest difference in FMR + largest difference in FNMR) / 2; 1 if equal",
            ],
            [
                "GARBE",
                f"{inequalities.garbe:.4f}",
                "mean of the Gini coefficients of FMR and FNMR; 0 if equal",
            ],
            ["FMR, max / geometric mean", _ratio(inequalities.fmr_ratio), "1 if equal"],
            ["FNMR, max / geometric mean", _ratio(inequalities.fnmr_ratio), "1 if equal"],
        ],
    )
    rate_charts = []
    for rate in ("fmr", "fnmr"):
        name = "false match rate" if rate == "fmr" else "false non-match rate"
        values = [
            {"name": row.group, "x": getattr(row, rate),
             "low": getattr(row, f"{rate}_interval")[0],
             "high": getattr(row, f"{rate}_interval")[1]}
            for row in rows
        ]  # fmt: skip
        chart = charts.ranges(values, name, x_format=".2~%", description=f"{name} by group")
        rate_charts.append(Chart(f"{name.capitalize()} by group, with 95 % intervals.", chart))
    note = (
        "Every pair compares people of the same group, so the FMR between groups, which is usually "
        "lower, is not measured. The intervals treat pairs as independent "
        "(ISO/IEC 19795-10)."
    )
    return Section(title, [*rate_charts, table, inequality_table, Text(note, "note")])


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f} %"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
