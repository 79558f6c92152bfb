"""``margrave threshold``: the operating point for a wanted FAR, kept with the model."""

from pathlib import Path
from typing import Annotated

import typer


def threshold(
    model: Annotated[Path, typer.Argument(help="A model file, a run's folder, or an .onnx file.")],
    features: Annotated[
        Path, typer.Argument(help="Its features (margrave embed) of labelled people.")
    ],
    far: Annotated[str, typer.Option(help="Wanted false accept rates, with commas.")] = "1e-4",
    distractors: Annotated[
        Path | None, typer.Option(help="Features of strangers, for smaller rates.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap replicates for the intervals.")
    ] = 1000,
    save: Annotated[bool, typer.Option(help="Keep them in the model, or only show them.")] = True,
) -> None:
    """Choose the cosine above which two faces are taken for one person."""
    from rich.table import Table

    from margrave.cli.console import Console
    from margrave.cli.judge import open_features
    from margrave.cli.options import numbers
    from margrave.cli.progress import counted
    from margrave.cli.tables import interval_text, percent
    from margrave.inference import (
        check_made_by,
        choose_operating_points,
        save_operating_points,
    )

    console = Console(highlight=False)
    targets = numbers("--far", far)
    store = open_features(console, features)
    check_made_by(model, store)
    others = None if distractors is None else open_features(console, distractors)
    with counted(console, "comparing") as progress:
        points = choose_operating_points(
            store, targets, others, resamples=resamples, progress=progress
        )
    if save:
        save_operating_points(model, points)
    table = Table("FAR", "cosine threshold", "95 % interval", "TAR %", "95 % interval")
    for point in points:
        around = point.threshold_interval
        table.add_row(
            f"{point.far:g}",
            f"{point.threshold:.4f}",
            "-" if around is None else f"{around[0]:.4f} to {around[1]:.4f}",
            percent(point.true_accept_rate),
            interval_text(point.true_accept_interval),
        )
    console.print(table)
    console.print(
        f"from {points[0].measured_on}, {points[0].impostors:,} impostor pairs", markup=False
    )
    if save:
        console.print(f"kept in {model}; margrave verify decides by it", markup=False)
