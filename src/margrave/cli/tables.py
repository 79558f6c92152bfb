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


def pairs_table(results: Mapping[str, PairResult]) -> Table:
    """Verification results, one row each."""
    rates = next(iter(results.values())).accept_rates
    table = Table(
        "pairs",
        "accuracy %",
        "95 % interval",
        *(f"TAR@FAR {rate.far_target:g}" for rate in rates),
        "EER %",
        "AUC",
        "cosine threshold",
        title=next(iter(results.values())).protocol + ", flip fusion",
    )
    for name, result in results.items():
        interval = result.intervals.accuracy if result.intervals else None
        table.add_row(
            f"{name} ({result.pairs})",
            f"{percent(result.accuracy)} ± {percent(result.accuracy_deviation)}",
            "-" if interval is None else f"{percent(interval[0])} - {percent(interval[1])}",
            *(
                f"{percent(rate.tar)}{'' if not rate.too_few_impostors else ' *'}"
                for rate in result.accept_rates
            ),
            percent(result.equal_error_rate),
            f"{result.area_under_roc:.4f}",
            f"{result.best_cosine:.3f}",
        )
    if any(rate.too_few_impostors for result in results.values() for rate in result.accept_rates):
        table.caption = "* fewer impostor pairs than one in 1/FAR: the rate says little"
    return table


def strata_table(name: str, strata: tuple[Stratum, ...]) -> Table:
    """Accuracy by the ground-truth quality of each pair's worse image."""
    table = Table("quality", "pairs", "accuracy %", title=f"{name}, by ground-truth quality")
    for stratum in strata:
        low = "0" if stratum.low is None else f"{stratum.low:g}"
        high = "1" if stratum.high is None else f"{stratum.high:g}"
        table.add_row(f"{low} - {high}", str(stratum.pairs), percent(stratum.accuracy))
    return table
