"""Formats metrics (``Figure``) as text, for tables in the terminal and in reports."""

from __future__ import annotations

from margrave.evaluation.rate_intervals import Interval
from margrave.evaluation.results import Figure, Result

TOO_FEW = "* too few impostor pairs: fewer than one false accept was allowed at this FAR"


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash for None.

    >>> percent(0.9733)
    '97.33'
    """
    return "-" if value is None else f"{100 * value:.2f}"


def interval_text(interval: Interval | None) -> str:
    """An interval in percent, or a dash for None."""
    return "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def p_value_text(value: float | None) -> str:
    """A p value with three decimals, or a dash for None.

    >>> p_value_text(0.00002)
    '< 0.001'
    """
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def value_text(figure: Figure, value: float | None = None) -> str:
    """Format a metric's value: a rate as a percentage, any other metric with four decimals.

    Args:
        figure: the metric.
        value: a value of the same metric to format; None formats ``figure.value``.

    >>> value_text(Figure(metric="accuracy", value=0.9312))
    '93.12 %'
    """
    value = figure.value if value is None else value
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if figure.percent else f"{value:.4f}"


def figure_interval_text(figure: Figure) -> str:
    """A metric's interval, in percent if the metric is a rate; a dash if it has no interval."""
    if figure.interval is None or figure.percent:
        return interval_text(figure.interval)
    low, high = figure.interval
    return f"{low:.4f} to {high:.4f}"


def rows_by_stratum(result: Result) -> tuple[list[str], list[list[str]]]:
    """The table of metrics by stratum: the metrics' names, and a row of cells for each stratum.

    A row contains the stratum's name, its number of pairs, and its value of each metric.
    """
    strata: dict[str, dict[str, Figure]] = {}
    for figure in result.figures:
        if figure.stratum:
            metric = figure.label.removesuffix(f", {figure.stratum}")
            strata.setdefault(figure.stratum, {})[metric] = figure
    metrics = list(dict.fromkeys(metric for figures in strata.values() for metric in figures))
    rows = []
    for stratum, figures in strata.items():
        pair_count = next(iter(figures.values())).details.get("pairs")
        cells = [marked_value(figures[name]) if name in figures else "-" for name in metrics]
        rows.append([stratum, "-" if pair_count is None else f"{pair_count:,.0f}", *cells])
    return metrics, rows


def marked_value(figure: Figure) -> str:
    """A metric's value, with an asterisk if it is unreliable; ``TOO_FEW`` explains the asterisk."""
    asterisk = " *" if figure.too_few and figure.value is not None else ""
    return value_text(figure) + asterisk
