"""``margrave lab``: write an interactive page about the margins of losses."""

from pathlib import Path
from typing import Annotated

import typer


def lab(
    losses: Annotated[
        list[str] | None,
        typer.Argument(
            help="Losses to show at first (`margrave losses`), or my_module:MyLoss; default: four "
            "common ones."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "lab.html"
    ),
) -> None:
    """Write a page with sliders that shows losses' margins, decision boundaries and gradients."""
    from margrave.cli.console import Console
    from margrave.cli.options import check_page_path, print_page_path
    from margrave.cli.progress import show_progress
    from margrave.losses import LOSSES
    from margrave.report import lab_page, lab_tables, write_page

    console = Console(highlight=False)
    check_page_path(output)
    # my_module:MyLoss is shown as MyLoss.
    chosen = {name.rpartition(":")[2]: {"kind": name} for name in losses or []}
    # The page contains all losses, and shows the chosen ones at first.
    all_losses = chosen | {name: {"kind": name} for name in LOSSES if name not in chosen}
    with show_progress(console, "computing curves") as progress:
        tables = lab_tables(all_losses, progress)
    write_page(lab_page(chosen or None, tables), output)
    print_page_path(console, output)
