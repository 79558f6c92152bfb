"""Tables of results."""

from __future__ import annotations

from collections.abc import Sequence

from margrave.evaluation import Result
from margrave.evaluation.figure_text import figure_interval_text, marked_value, rows_by_part
from margrave.report.contents import Table


def figures_table(result: Result) -> Table:
    """The figures over all data: value, interval, threshold, realized rate."""
    figures = [each for each in result.figures if not each.stratum]
    columns = ["", "value", "95 % interval"]
    thresholds = any(each.threshold is not None for each in figures)
    columns += ["threshold (cosine)", "FAR at the threshold"] if thresholds else []
    rows = []
    for each in figures:
        row = [each.label, marked_value(each), figure_interval_text(each)]
        if thresholds:
            row.append("-" if each.threshold is None else f"{each.threshold:.4f}")
            row.append("-" if each.realized is None else f"{each.realized:.2g}")
        rows.append(row)
    return Table("Figures over all data", columns, rows)


def strata_table(result: Result) -> Table | None:
    """The figures of parts of the data, one row per part; None if there are none."""
    metrics, rows = rows_by_part(result)
    caption = "Parts of the data, at the thresholds of all data"
    return Table(caption, ["part", "pairs", *metrics], rows) if rows else None


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
            rows.append([label, *(value or "-" for value in values)])
    return Table("Counts, model and protocol", ["", *(r.name or r.protocol for r in results)], rows)


def _identities(result: Result) -> int | None:
    if result.scores is None or result.scores.identities is None:
        return None
    return len({label for pair in result.scores.identities for label in pair})


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
