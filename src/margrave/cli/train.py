"""``margrave train``: a recipe, your data, a model."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    context: typer.Context,
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes (`margrave recipes`) or YAML files, merged in order."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with one subfolder per identity, InsightFace's records, or shards, "
            "which may lie at an address (https://…, s3://…)."
        ),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="A loss (`margrave losses`) or my_module:MyLoss.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The run's folder.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: training.epochs=5.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.")] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="With --resume: import and run code that the run names."),
    ] = False,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, one per GPU if there are any.")
    ] = 1,
) -> None:
    """Train a model; stop at any moment and go on with --resume.

    On several machines: torchrun --nnodes … --nproc-per-node … -m margrave train ….
    """
    from margrave.cli.console import Console
    from margrave.cli.processes import share_out
    from margrave.cli.running import Run, show
    from margrave.config import merge, parse_overrides, read_config, read_run_config
    from margrave.data import recognise
    from margrave.distributed import RankError, has_launcher
    from margrave.training import latest_checkpoint

    console = Console(highlight=False)
    overrides: dict[str, Any] = parse_overrides(settings or [])
    if data is not None:
        overrides = merge(
            {"data": {"train": recognise(data if "://" in data else Path(data).resolve())}},
            overrides,
        )
    if resume is not None:
        if any((recipes, loss, output)):
            raise ValueError(
                "--resume goes on with the run's own configuration; beside it only --set and, "
                "where the images have moved, --data"
            )
        config, folder = read_run_config(resume, overrides, trust_code), resume
    else:
        if loss is not None:
            overrides = merge({"loss": {"kind": loss}}, overrides)
        config = read_config(recipes or ["small"], overrides)
        folder = output or Path("runs") / Path((recipes or ["small"])[-1]).stem
        if latest_checkpoint(folder):
            raise ValueError(
                f"{folder} holds a run already: go on with --resume {folder}, "
                "or choose another --output"
            )
    try:
        try:
            if share_out(context, devices):
                return
        except RankError as error:
            again = f"\n  go on with: margrave train --resume {folder} --devices {devices}"
            raise ValueError(f"{error}{again if latest_checkpoint(folder) else ''}") from error
        run = Run(config, folder, console)
        checkpoint = latest_checkpoint(folder)
        if checkpoint is not None:
            console.print(f"going on from {checkpoint}", markup=False, soft_wrap=True)
        training = run.open_training(resume is not None)
        judged = run.train(training, resume=checkpoint is not None)
    except OSError as error:
        again = f"\n  go on with: margrave train --resume {folder}"
        raise ValueError(f"{error}{again if latest_checkpoint(folder) else ''}") from error
    except KeyboardInterrupt:
        if not has_launcher():
            console.print(f"stopped; go on with: margrave train --resume {folder}", markup=False)
        raise typer.Exit(130) from None
    show(console, judged)
    written = "model, results and curves" if judged else "model and curves"
    console.print(f"{written} are in {folder}", markup=False, soft_wrap=True)
    if not judged:
        said = f"judge it on people it has not seen: margrave evaluate {folder} OTHER_FACES/"
        console.print(said, markup=False, soft_wrap=True)
