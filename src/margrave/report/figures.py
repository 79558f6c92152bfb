"""Tables of a result's figures, strata and counts."""

from __future__ import annotations

from collections.abc import Sequence

from margrave.evaluation import Result
from margrave.evaluation.figure_text import figure_interval_text, marked_value, rows_by_stratum
from margrave.report.contents import Table


def figures_table(result: Result) -> Table:
    """A table of the figures over all data: value, interval, threshold, FAR at the threshold."""
    figures = [figure for figure in result.figures if not figure.stratum]
    columns = ["", "value", "95 % interval"]
    has_thresholds = any(figure.threshold is not None for figure in figures)
    columns += ["threshold (cosine)", "FAR at the threshold"] if has_thresholds else []
    rows = []
    for figure in figures:
        row = [figure.label, marked_value(figure), figure_interval_text(figure)]
        if has_thresholds:
            row.append("-" if figure.threshold is None else f"{figure.threshold:.4f}")
            row.append("-" if figure.realized is None else f"{figure.realized:.2g}")
        rows.append(row)
    return Table("Figures over all data", columns, rows)


def strata_table(result: Result) -> Table | None:
    """A table of the figures of each stratum (part of the data); None if there are no strata."""
    metrics, rows = rows_by_stratum(result)
    caption = "Parts of the data, at the thresholds set on all data"
    return Table(caption, ["part", "pairs", *metrics], rows) if rows else None


def counts_table(results: Sequence[Result]) -> Table:
    """A table of counts, unreadable images, model, protocol and version; one column per result."""
    count_names = list(dict.fromkeys(name for result in results for name in result.counts))
    rows = [
        [name.replace("_", " "), *(_count_text(result.counts.get(name)) for result in results)]
        for name in count_names
    ]
    identity_counts = [_count_identities(result) for result in results]
    if "identities" not in count_names and any(identity_counts):
        rows.insert(0, ["identities", *(_count_text(count) for count in identity_counts)])
    rows.append(["unreadable images", *(_count_text(len(result.unreadable)) for result in results)])
    for label, values in (
        ("images", [result.origin.images for result in results]),
        ("model", [result.origin.model for result in results]),
        # The first 12 hex digits of the weights' digest.
        ("weights", [result.origin.weights[:12] for result in results]),
        ("protocol", [result.rules or result.protocol for result in results]),
        ("measured by", [f"Margrave {result.version}" for result in results]),
    ):
        if any(values):
            rows.append([label, *(value or "-" for value in values)])
    columns = ["", *(result.name or result.protocol for result in results)]
    return Table("Counts, model and protocol", columns, rows)


def _count_identities(result: Result) -> int | None:
    """The number of identities in a result's pairs; None if they are unknown."""
    if result.scores is None or result.scores.identities is None:
        return None
    return len({label for pair in result.scores.identities for label in pair})


def _count_text(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
