"""Results as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from margrave.evaluation import (
        AllToAllResult,
        DetectionRate,
        IdentificationResult,
        OpenSetResult,
        PairResult,
        Stratum,
        TemplateResult,
    )


def percent(value: float | None) -> str:
    """A share as a percentage; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """Both ends as percentages; a dash where there is none."""
    return "-" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def pairs_table(results: Mapping[str, PairResult]) -> Table:
    """Verification results, a column for each set of pairs."""
    first = next(iter(results.values()))
    table = Table("")
    for name in results:
        table.add_column(escape(name), justify="right")

    def row(heading: str, values: list[str]) -> None:
        table.add_row(heading, *values)

    every = list(results.values())
    row("pairs", [str(result.pairs) for result in every])
    row("accuracy %", [percent(result.accuracy) for result in every])
    intervals = [result.intervals for result in every]
    row("95 % interval", [interval_text(found and found.accuracy) for found in intervals])
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
    notes = every[0].protocol
    if any(rate.too_few_impostors for result in every for rate in result.accept_rates):
        notes += "\n* too few impostor pairs for this FAR: the rate says little"
    return notes


def strata_table(name: str, strata: tuple[Stratum, ...]) -> Table:
    """Accuracy by the ground-truth quality of each pair's worse image."""
    table = Table(
        "quality", "pairs", "accuracy %", title=f"{escape(name)}, by ground-truth quality"
    )
    for stratum in strata:
        low = "0" if stratum.low is None else f"{stratum.low:g}"
        high = "1" if stratum.high is None else f"{stratum.high:g}"
        table.add_row(f"{low} - {high}", str(stratum.pairs), percent(stratum.accuracy))
    return table


def templates_table(result: TemplateResult) -> Table:
    """1:1 verification of templates, by the published rule and by the strict one."""
    table = Table(
        "FAR",
        "TAR % (nearest FAR)",
        "TAR % (FAR at most)",
        "95 % interval",
        "cosine threshold",
        title=f"{result.protocol}: {result.templates:,} templates, {result.pairs:,} pairs, "
        f"{result.genuine:,} genuine",
    )
    for nearest, strict in zip(result.nearest, result.accept_rates, strict=True):
        table.add_row(
            f"{nearest.far_target:g}" + " *" * strict.too_few_impostors,
            percent(nearest.tar),
            percent(strict.tar),
            interval_text(strict.interval),
            f"{strict.threshold:.4f}",
        )
    return _explained(table, any(rate.too_few_impostors for rate in result.accept_rates))


def open_set_table(result: OpenSetResult) -> Table:
    """Open-set identification."""
    table = Table(
        "",
        "%",
        "95 % interval",
        title=f"{result.protocol}: {result.mated:,} mated and {result.non_mated:,} other searches",
    )
    for rank in result.ranks:
        table.add_row(f"rank {rank.rank}", percent(rank.rate), interval_text(rank.interval))
    for rate in result.rates:
        heading = f"TPIR at FPIR {rate.target:g}" + " *" * rate.too_few_probes
        table.add_row(heading, percent(rate.tpir), interval_text(rate.interval))
    return _explained(table, any(rate.too_few_probes for rate in result.rates))


def identification_table(result: IdentificationResult) -> Table:
    """Closed-set identification."""
    table = Table(
        "rank",
        "%",
        "95 % interval",
        title=f"{result.protocol}: {result.probes:,} probes ({result.probes_without_mate:,} more "
        f"without mate), gallery of {result.gallery:,} with {result.distractors:,} distractors",
    )
    for rank in result.ranks:
        table.add_row(str(rank.rank), percent(rank.rate), interval_text(rank.interval))
    return table


def detection_table(rates: Sequence[DetectionRate]) -> Table:
    """Detection and identification rates."""
    table = Table("DIR at FAR", "threshold", title="detection and identification")
    for rank in rates[0].rates:
        table.add_column(f"rank {rank.rank} %")
    for rate in rates:
        shares = [
            f"{percent(rank.rate)} ({interval_text(rank.interval)})"
            if rank.interval
            else percent(rank.rate)
            for rank in rate.rates
        ]
        heading = f"{rate.far_target:g}" + " *" * rate.too_few_probes
        table.add_row(heading, f"{rate.threshold:.4f}", *shares)
    return _explained(table, any(rate.too_few_probes for rate in rates))


def all_to_all_table(result: AllToAllResult) -> Table:
    """Everybody against everybody."""
    table = Table(
        "",
        "%",
        "95 % interval",
        "cosine threshold",
        title=f"{result.protocol}: {result.images:,} images of {result.identities:,} people, "
        f"{result.distractors:,} distractors, {result.genuine:,} genuine and "
        f"{result.impostors:,} impostor pairs",
    )
    for rate in result.verification:
        table.add_row(
            f"TAR at FAR {rate.far_target:g}" + " *" * rate.too_few_impostors,
            percent(rate.tar),
            interval_text(rate.interval),
            f"{rate.threshold:.4f}",
        )
    for rank in result.ranks:
        heading = f"rank {rank.rank} among distractors"
        table.add_row(heading, percent(rank.rate), interval_text(rank.interval), "")
    for rate in result.identification:
        table.add_row(
            f"identified at FAR {rate.far_target:g}" + " *" * rate.too_few_impostors,
            percent(rate.tar),
            interval_text(rate.interval),
            f"{rate.threshold:.4f}",
        )
    few = (*result.verification, *result.identification)
    return _explained(table, any(rate.too_few_impostors for rate in few))


def _explained(table: Table, too_few: bool) -> Table:
    if too_few:
        table.caption = "* fewer than one false accept was allowed: the rate says little"
    return table
