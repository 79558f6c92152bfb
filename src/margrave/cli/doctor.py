"""``margrave doctor``: what is wrong with data, a model or a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from margrave.doctor import Finding


def doctor(
    patient: Annotated[
        str,
        typer.Argument(
            help="A data set (folder, records, shards, .bin), a model or checkpoint, or a run."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="With a model: labelled faces to try colours and normalisations on."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=40, help="Look at this many images, drawn by identity.")
    ] = 20_000,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images.")] = 4,
    as_json: Annotated[
        bool, typer.Option("--json", help="Findings as JSON, for programs.")
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Import and run a model's own network code.")
    ] = False,
) -> None:
    """Findings, the worst first, each with its remedy; exit status 1 if one is serious."""
    from rich.console import Console

    from margrave.cli.progress import counted
    from margrave.data import open_images, read_pairs_bin, recognise
    from margrave.doctor import examine_images, examine_model, examine_pairs, examine_run

    console = Console(highlight=False, stderr=as_json)
    path = Path(patient)
    with counted(console, "looking") as progress:
        if (path / "config.yaml").is_file():
            found = examine_run(path, images // 10, workers, trust_code, progress)
        elif path.suffix in (".safetensors", ".pth", ".pt", ".ckpt"):
            faces = open_images(recognise(data)) if data else None
            found = examine_model(path, faces, min(images, 400), trust_code, progress)
        elif path.suffix == ".bin":
            pairs, packed = read_pairs_bin(path)
            found = examine_pairs(packed, pairs, workers, progress)
        else:
            found = examine_images(open_images(recognise(patient)), images, workers, progress)
    serious = [finding for finding in found if finding.severity == "serious"]
    if as_json:
        print(json.dumps([finding.to_json() for finding in found], indent=1))
    else:
        _show(console, found)
        console.print("nothing serious found" if not serious else f"{len(serious)} serious")
    if serious:
        raise typer.Exit(1)


def _show(console: Console, found: list[Finding]) -> None:
    from rich.markup import escape

    colours = {"serious": "bold red", "warning": "yellow", "note": "dim"}
    for finding in found:
        colour = colours[finding.severity]
        console.print(
            f"[{colour}]{finding.severity}[/] [bold]{finding.fault}[/]: {escape(finding.said)}",
            soft_wrap=True,
        )
        for example in finding.examples:
            console.print(f"    {escape(example)}", soft_wrap=True)
        if finding.remedy != "none needed":
            console.print(f"  -> {escape(finding.remedy)}", soft_wrap=True)
