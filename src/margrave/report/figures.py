"""Figures of results as text, for tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from margrave.evaluation import Figure, Result
from margrave.report.contents import Table


def value_text(figure: Figure, value: float | None = None) -> str:
    """A figure's value, or another one of its kind.

    >>> value_text(Figure(metric="accuracy", value=0.9312))
    '93.12 %'
    """
    value = figure.value if value is None else value
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if figure.percent else f"{value:.4f}"


def interval_text(figure: Figure) -> str:
    """A figure's interval.

    >>> interval_text(Figure(metric="accuracy", value=0.9, interval=(0.88, 0.915)))
    '88.00 to 91.50 %'
    """
    if figure.interval is None:
        return "–"
    low, high = figure.interval
    if figure.percent:
        return f"{100 * low:.2f} to {100 * high:.2f} %"
    return f"{low:.4f} to {high:.4f}"


def p_text(value: float | None) -> str:
    """A p value.

    >>> p_text(0.0004), p_text(None)
    ('< 0.001', '–')
    """
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def figures_table(result: Result) -> Table:
    """The figures over all data: value, interval, threshold, realized rate."""
    figures = [each for each in result.figures if not each.stratum]
    columns = ["", "value", "95 % interval"]
    thresholds = any(each.threshold is not None for each in figures)
    columns += ["threshold (cosine)", "FAR at the threshold"] if thresholds else []
    rows = []
    for each in figures:
        row = [each.label, value_text(each) + " *" * each.too_few, interval_text(each)]
        if thresholds:
            row.append("–" if each.threshold is None else f"{each.threshold:.4f}")
            row.append("–" if each.realized is None else f"{each.realized:.2g}")
        rows.append(row)
    return Table("Figures over all data", columns, rows)


def strata_table(result: Result) -> Table | None:
    """The figures of parts of the data, one row per part; None if there are none."""
    parts: dict[str, dict[str, Figure]] = {}
    for each in result.figures:
        if each.stratum:
            metric = each.label.removesuffix(f", {each.stratum}")
            parts.setdefault(each.stratum, {})[metric] = each
    if not parts:
        return None
    metrics = list(dict.fromkeys(metric for part in parts.values() for metric in part))
    rows = []
    for stratum, figures in parts.items():
        count = next(iter(figures.values())).details.get("pairs")
        cells = [value_text(figures[m]) if m in figures else "–" for m in metrics]
        rows.append([stratum, "–" if count is None else f"{count:,.0f}", *cells])
    caption = "Parts of the data, at the thresholds of all data"
    return Table(caption, ["part", "pairs", *metrics], rows)


def counts_table(results: Sequence[Result]) -> Table:
    """Who and what was compared: counts, failures, model and version, a column per result."""
    names = list(dict.fromkeys(name for result in results for name in result.counts))
    rows = [
        [name.replace("_", " "), *(_count(result.counts.get(name)) for result in results)]
        for name in names
    ]
    identities = [_identities(result) for result in results]
    if "identities" not in names and any(identities):
        rows.insert(0, ["identities", *(_count(each) for each in identities)])
    rows.append(["images not readable", *(_count(len(result.unreadable)) for result in results)])
    for label, values in (
        ("images", [result.origin.images for result in results]),
        ("model", [result.origin.model for result in results]),
        ("weights", [result.origin.weights[:12] for result in results]),
        ("protocol", [result.rules or result.protocol for result in results]),
        ("measured by", [f"Margrave {result.version}" for result in results]),
    ):
        if any(values):
            rows.append([label, *(value or "–" for value in values)])
    return Table("Counts, model and protocol", ["", *(r.name or r.protocol for r in results)], rows)


def _identities(result: Result) -> int | None:
    if result.scores is None or result.scores.identities is None:
        return None
    return len({label for pair in result.scores.identities for label in pair})


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
