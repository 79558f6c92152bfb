"""``margrave train``: a recipe, your data, a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes (`margrave recipes`) or YAML files, merged in order."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder with one subfolder of images per identity.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="A loss (`margrave losses`) or my_module:MyLoss.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run's folder.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: training.epochs=5.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
) -> None:
    """Train a model; stop at any moment and go on with --resume."""
    from rich.console import Console

    from margrave.cli.running import Run, show
    from margrave.config import merge, parse_overrides, read_config
    from margrave.training import CHECKPOINT

    console = Console(highlight=False)
    overrides: dict[str, Any] = parse_overrides(settings or [])
    if data is not None:
        folder_of_images = {"kind": "folder", "root": str(data.resolve())}
        overrides = merge({"data": {"train": folder_of_images}}, overrides)
    if resume is not None:
        if any((recipes, loss, output)):
            raise ValueError(
                "--resume goes on with the run's own configuration; beside it only --set and, "
                "where the images have moved, --data"
            )
        if not (resume / "config.yaml").is_file():
            raise ValueError(f"{resume} is not a run's folder: it holds no config.yaml")
        config, folder = read_config([str(resume / "config.yaml")], overrides), resume
    else:
        if loss is not None:
            overrides = merge({"loss": {"kind": loss}}, overrides)
        config = read_config(recipes or ["small"], overrides)
        folder = output or Path("runs") / Path((recipes or ["small"])[-1]).stem
        if (folder / CHECKPOINT).is_file():
            raise ValueError(
                f"{folder} holds a run already: go on with --resume {folder}, "
                "or choose another --output"
            )
    if (folder / CHECKPOINT).is_file():
        console.print(f"going on from {folder / CHECKPOINT}", markup=False, soft_wrap=True)
    run = Run(config, folder, console)
    training = run.open_training()
    try:
        judged = run.train(training, resume=(folder / CHECKPOINT).is_file())
    except KeyboardInterrupt:
        console.print(f"stopped; go on with: margrave train --resume {folder}", markup=False)
        raise typer.Exit(130) from None
    show(console, judged)
    written = "model, results and curves" if judged else "model and curves"
    console.print(f"{written} are in {folder}", markup=False, soft_wrap=True)
    if not judged:
        said = f"judge it on people it has not seen: margrave evaluate {folder} OTHER_FACES/"
        console.print(said, markup=False, soft_wrap=True)
