"""Tables of results for the terminal, for any protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from margrave.evaluation.figure_text import (
    TOO_FEW,
    figure_interval_text,
    marked_value,
    p_value_text,
    percent,
    rows_by_stratum,
)

if TYPE_CHECKING:
    from margrave.evaluation import Figure, Result, SeedComparison


def results_tables(results: Sequence[Result]) -> Iterator[Table]:
    """Yield tables of results, then tables of their strata (parts of their data, such as races).

    Results with the same metrics share a table, in which each has a column.
    """
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        labels = tuple(figure.label for figure in _overall(result))
        groups.setdefault(labels, []).append(result)
    for group in groups.values():
        yield _single_table(group[0]) if len(group) == 1 else _shared_table(group)
    for result in results:
        if any(figure.stratum for figure in result.figures):
            yield _strata_table(result)


def _title(result: Result) -> str:
    """The result's name and counts, such as ``LFW: 6,000 pairs``."""
    counts = [f"{count:,} {name.replace('_', '-')}" for name, count in result.counts.items()]
    return escape(": ".join(text for text in (result.name, ", ".join(counts)) if text))


def _single_table(result: Result) -> Table:
    """A table of one result, with a row per metric."""
    table = Table("", title=_title(result), title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    has_thresholds = any(figure.threshold is not None for figure in _overall(result))
    if has_thresholds:
        table.add_column("cosine threshold", justify="right")
    for figure in _overall(result):
        row = [escape(figure.label), marked_value(figure), figure_interval_text(figure)]
        if has_thresholds:
            row.append("-" if figure.threshold is None else f"{figure.threshold:.4f}")
        table.add_row(*row)
    return table


def _overall(result: Result) -> list[Figure]:
    """The figures that are measured on all the data, not on a stratum."""
    return [figure for figure in result.figures if not figure.stratum]


def _strata_table(result: Result) -> Table:
    """A table with a row per stratum of the data and a column per metric."""
    metrics, rows = rows_by_stratum(result)
    # The result's name may be empty.
    table = Table("", "pairs", title=escape(f"{result.name}, parts of the data").lstrip(", "))
    for metric in metrics:
        table.add_column(escape(metric), justify="right")
    for stratum, *cells in rows:
        table.add_row(escape(stratum), *cells)
    return table


def _shared_table(results: Sequence[Result]) -> Table:
    """A table of several results, with a row per metric and a column per result."""
    table = Table("")
    for result in results:
        table.add_column(escape(result.name), justify="right")
    for name in results[0].counts:
        table.add_row(name, *(f"{result.counts.get(name, 0):,}" for result in results))
    for figures in zip(*map(_overall, results), strict=True):
        cells = []
        for figure in figures:
            interval = figure_interval_text(figure)
            cells.append(marked_value(figure) + (f"\n{interval}" if interval != "-" else ""))
        table.add_row(escape(figures[0].label), *cells)
    return table


def result_notes(results: Sequence[Result]) -> list[str]:
    """Return notes on the tables: the protocols' rules, and the meaning of an asterisk."""
    notes = list(dict.fromkeys(result.rules for result in results if result.rules))
    if any(figure.too_few for result in results for figure in result.figures):
        notes.append(TOO_FEW)
    return notes


def _plain_value(figure: Figure, value: float | None) -> str:
    """Format a value of the figure's metric, without a unit."""
    return percent(value) if figure.percent or value is None else f"{value:.4f}"


def _signed_value(figure: Figure, value: float) -> str:
    """Format a difference in the figure's metric, with its sign but without a unit."""
    return f"{100 * value:+.2f}" if figure.percent else f"{value:+.4f}"


def comparison_table(result: Result, first: str, second: str) -> Table:
    """A table of the differences, second − first, between two models on the same pairs.

    The column "more pairs" tells how many are needed to find such a difference significant.

    Args:
        result: the comparison, whose figures are differences.
        first: the first model's name.
        second: the second model's name.
    """
    table = Table(
        "",
        "first",
        "second",
        "difference",
        "95 % interval",
        "p value",
        "more pairs",
        title=escape(result.name),
        caption=f"first: {escape(first)}\nsecond: {escape(second)}",
        caption_justify="left",
    )
    for figure in result.figures:
        metric = figure.label.removeprefix("difference in ") + (" *" if figure.too_few else "")
        # In a comparison, each figure has a value and an interval; `or` only narrows their types.
        ends = figure.interval or (0.0, 0.0)
        more_pairs = figure.details.get("more_pairs")
        table.add_row(
            metric,
            *(_plain_value(figure, figure.details.get(name)) for name in ("first", "second")),
            _signed_value(figure, figure.value or 0.0),
            " to ".join(_signed_value(figure, end) for end in ends),
            p_value_text(figure.details.get("p_value")),
            "-" if more_pairs is None else f"{more_pairs:,.0f}",
        )
    return table


def study_table(title: str, comparison: SeedComparison, metric: str) -> Table:
    """A table of a study's losses in one condition, best first.

    Args:
        title: the condition's name.
        comparison: each loss's metric, averaged over the seeds, and the losses' differences.
        metric: the metric's name.
    """
    is_auc = metric == "AUC"

    def text(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.4f}" if is_auc else f"{100 * value:.2f}"

    best = next(iter(comparison.means))
    num_seeds = len(comparison.means[best].seed_values)
    noun = "seed" if num_seeds == 1 else "seeds"
    table = Table(title=escape(f"{title}: {num_seeds} {noun}"), title_justify="left")
    table.add_column("loss", overflow="fold")
    unit = "" if is_auc else " %"
    for column in (f"{metric}{unit}", "95 % interval", "std over seeds", f"behind {best}"):
        table.add_column(column, justify="right")
    table.add_column("p, corrected", justify="right")
    for loss, mean in comparison.means.items():
        ends = "-" if mean.interval is None else " to ".join(text(end) for end in mean.interval)
        row = [escape(loss), text(mean.value), ends, text(mean.seed_std)]
        # How much better the best loss is than this one. The better loss of a difference is second.
        # There is one difference, or none in the row of the best loss itself.
        behind_best = [
            difference
            for difference in comparison.differences
            if (difference.first, difference.second) == (loss, best)
        ]
        row += [text(difference.mean.value) for difference in behind_best] or [""]
        row += [p_value_text(difference.adjusted_p_value) for difference in behind_best] or [""]
        table.add_row(*row)
    return table
