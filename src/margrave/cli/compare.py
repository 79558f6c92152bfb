"""``margrave compare``: which of two models is better, and whether that means anything."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(help="Features by one model (margrave embed).")],
    second: Annotated[Path, typer.Argument(help="Features of the same images by the other.")],
    pairs: Annotated[
        Path, typer.Argument(help="LFW's pairs.txt, a CSV, 'path path 1', or a .bin set.")
    ],
    far: Annotated[str, typer.Option(help="Of true accept rates, with commas.")] = "1e-2,1e-3",
    resamples: Annotated[int, typer.Option(min=2, help="Bootstrap replicates.")] = 1000,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the results as JSON.")
    ] = None,
) -> None:
    """Differences with intervals, p values, and how many more pairs would settle them."""
    from dataclasses import asdict

    from rich.markup import escape
    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.cli.judge import open_features
    from margrave.cli.options import numbers, write_output
    from margrave.cli.tables import percent
    from margrave.inference import judge_difference

    console = Console(highlight=False)
    targets = numbers("--far", far)
    stores = open_features(console, first), open_features(console, second)
    found = judge_difference(*stores, pairs, targets, resamples)
    table = Table(
        "",
        escape(str(first)),
        escape(str(second)),
        "difference",
        "95 % interval",
        "p value",
        "more pairs",
    )
    for each in found:
        name = each.metric.replace("_", " ")
        table.add_row(
            name
            if each.far_target is None
            else f"{name} at FAR {each.far_target:g}{' *' * each.too_few_impostors}",
            percent(each.first),
            percent(each.second),
            f"{100 * each.difference:+.2f}",
            f"{100 * each.interval[0]:+.2f} to {100 * each.interval[1]:+.2f}",
            f"{each.p_value:.3f}",
            "-" if each.more_pairs is None else f"{each.more_pairs:,}",
        )
    console.print(table)
    console.print(
        "percent and points, the second model less the first; p: of a difference as large between "
        "equally good models; more pairs: to settle it at 5 %, were it real",
        soft_wrap=True,
    )
    if any(each.too_few_impostors for each in found):
        console.print("* fewer than ten false accepts allowed: single impostor pairs decide")
    write_output(output, [asdict(each) for each in found])
