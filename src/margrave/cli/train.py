"""``margrave train``: train a model on your data with a recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    context: typer.Context,
    recipes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipes (`margrave recipes`) or YAML files, merged in order; default: the "
            "recipe small."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training images: a folder with one subfolder per identity, InsightFace's "
            "records, or shards, which may be remote (https://…, s3://…)."
        ),
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="A loss (`margrave losses`) or my_module:MyLoss.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The run's folder; default: runs/RECIPE."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change any setting, such as training.epochs=5; repeatable."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the run in this folder.")] = None,
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="With --resume: import and run custom code that the run names."
        ),
    ] = False,
    devices: Annotated[
        int, typer.Option(min=1, help="Number of processes on this machine, one per GPU.")
    ] = 1,
) -> None:
    """Train a model; you can stop it at any time and resume it with --resume.

    On several machines: torchrun --nnodes … --nproc-per-node … -m margrave train ….
    """
    from margrave.cli.console import Console
    from margrave.cli.options import show_results
    from margrave.cli.processes import relaunch
    from margrave.cli.run_events import ConsoleEvents
    from margrave.config import merge, parse_overrides, read_config
    from margrave.data import detect_source
    from margrave.distributed import RankError, current_launch, has_launcher
    from margrave.losses import spec_at_scale
    from margrave.runs import Run, RunFolder
    from margrave.training import latest_checkpoint

    console = Console(highlight=False)
    overrides: dict[str, Any] = parse_overrides(settings or [])
    if data is not None:
        overrides = merge(
            {"data": {"train": detect_source(data if "://" in data else Path(data).resolve())}},
            overrides,
        )
    if resume is not None:
        if any((recipes, loss, output)):
            raise ValueError(
                "--resume uses the run's own configuration; you can add only --set, --devices, "
                "--trust-code, and --data if the images have moved"
            )
        config, folder = RunFolder(resume).read_config(overrides, trust_code), resume
    else:
        if loss is not None:
            without_loss = {key: value for key, value in overrides.items() if key != "loss"}
            recipe_loss = read_config(recipes or ["small"], without_loss).loss
            # If the recipe uses this loss already, keep the recipe's settings of the loss.
            is_recipe_loss = loss == recipe_loss["kind"]
            loss_spec = {"kind": loss} if is_recipe_loss else spec_at_scale(loss, recipe_loss)
            if "scale" in loss_spec and "scale" not in overrides.get("loss", {}):
                console.print(
                    f"loss {loss} uses the recipe's scale {loss_spec['scale']:g}; the loss's other "
                    "settings are those of its paper: change them with --set loss.NAME=VALUE",
                    markup=False,
                    soft_wrap=True,
                )
            overrides = merge({"loss": loss_spec}, overrides)
        config = read_config(recipes or ["small"], overrides)
        folder = output or Path("runs") / Path((recipes or ["small"])[-1]).stem
        if latest_checkpoint(folder):
            raise ValueError(
                f"{folder} already contains a run: resume it with --resume {folder}, or choose "
                "another --output"
            )
    try:
        try:
            if relaunch(context, devices):
                return
        except RankError as error:
            hint = f"\n  resume with: margrave train --resume {folder} --devices {devices}"
            raise ValueError(f"{error}{hint if latest_checkpoint(folder) else ''}") from error
        console.quiet = current_launch().rank > 0
        run = Run(config, folder, ConsoleEvents(console))
        checkpoint = latest_checkpoint(folder)
        if checkpoint is not None:
            console.print(f"resuming from {checkpoint}", markup=False, soft_wrap=True)
        training = run.open_training(resume=resume is not None)
        results = run.train(training, resume=checkpoint is not None)
    except OSError as error:
        hint = f"\n  resume with: margrave train --resume {folder}"
        raise ValueError(f"{error}{hint if latest_checkpoint(folder) else ''}") from error
    except KeyboardInterrupt:
        if not has_launcher():
            hint = f"resume with: margrave train --resume {folder}"
            if not latest_checkpoint(folder):
                hint = "there is no checkpoint yet, so start again with the same command"
            console.print(f"stopped; {hint}", markup=False)
        raise typer.Exit(130) from None
    show_results(console, results)
    outputs = "model, results and curves" if results else "model and curves"
    console.print(f"{outputs} are in {folder}", markup=False, soft_wrap=True)
    if not results:
        console.print(
            "evaluate it on identities that are not in the training set: "
            f"margrave evaluate pairs {folder} --images OTHER_FACES/",
            markup=False,
            soft_wrap=True,
        )
