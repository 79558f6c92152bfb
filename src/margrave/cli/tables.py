"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from margrave.evaluation import PairResult, Stratum


def percent(value: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def pairs_table(results: Mapping[str, PairResult]) -> Table:
    """Verification results, a column for each set of pairs."""
    first = next(iter(results.values()))
    table = Table("")
    for name in results:
        table.add_column(name, justify="right")

    def row(heading: str, values: list[str]) -> None:
        table.add_row(heading, *values)

    every = list(results.values())
    row("pairs", [str(result.pairs) for result in every])
    row("accuracy %", [percent(result.accuracy) for result in every])
    intervals = [result.intervals for result in every]
    row("95 % interval", [_interval(found and found.accuracy) for found in intervals])
    row("deviation of folds", [percent(result.accuracy_deviation) for result in every])
    for position, rate in enumerate(first.accept_rates):
        rates = [result.accept_rates[position] for result in every]
        values = [percent(rate.tar) + " *" * rate.too_few_impostors for rate in rates]
        row(f"TAR % at FAR {rate.far_target:g}", values)
    row("EER %", [percent(result.equal_error_rate) for result in every])
    row("AUC", [f"{result.area_under_roc:.4f}" for result in every])
    row("cosine threshold", [f"{result.best_cosine:.3f}" for result in every])
    return table


def pairs_notes(results: Mapping[str, PairResult]) -> str:
    """What stands below the table: the protocol, and what an asterisk means."""
    every = list(results.values())
    notes = f"{every[0].protocol}; flip fusion"
    if any(rate.too_few_impostors for result in every for rate in result.accept_rates):
        notes += "\n* too few impostor pairs for this FAR: the rate says little"
    return notes


def strata_table(name: str, strata: tuple[Stratum, ...]) -> Table:
    """Accuracy by the ground-truth quality of each pair's worse image."""
    table = Table("quality", "pairs", "accuracy %", title=f"{name}, by ground-truth quality")
    for stratum in strata:
        low = "0" if stratum.low is None else f"{stratum.low:g}"
        high = "1" if stratum.high is None else f"{stratum.high:g}"
        table.add_row(f"{low} - {high}", str(stratum.pairs), percent(stratum.accuracy))
    return table
