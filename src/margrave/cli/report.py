"""``margrave report``: write results as an HTML page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs or studies, or JSON files of results."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str, typer.Option(help="The page's title; default: the names of the inputs.")
    ] = "",
    faces: Annotated[
        bool,
        typer.Option(
            "--faces/--no-faces", help="Show thumbnails of the hardest pairs, or no faces at all."
        ),
    ] = True,
    lab: Annotated[
        bool,
        typer.Option(
            "--lab/--no-lab",
            help="Add an interactive section that plots the losses' margins and gradients.",
        ),
    ] = True,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Import and run custom code that a run names.")
    ] = False,
) -> None:
    """Write a report of runs, studies or results as one self-contained HTML file."""
    from margrave.cli.console import Console
    from margrave.cli.options import check_page_path, print_page_path
    from margrave.cli.progress import show_progress
    from margrave.report import build_report, open_input, write_page

    console = Console(highlight=False)
    check_page_path(output)
    opened = [open_input(path) for path in inputs]

    def print_note(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    with show_progress(console, "writing the report") as progress:
        page = build_report(
            opened,
            title=title,
            faces=faces,
            lab=lab,
            trust_code=trust_code,
            note=print_note,
            progress=progress,
        )
        write_page(page, output)
    print_page_path(console, output)
