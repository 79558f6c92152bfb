"""``margrave demo``: the whole of it in minutes, without any data."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.")] = Path(
        "runs/demo"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: training.epochs=5.")
    ] = None,
) -> None:
    """Make faces, train on them with AdaFace, and judge the model on identities never seen."""
    from margrave.cli.console import Console
    from margrave.cli.running import Run, show
    from margrave.cli.tables import percent
    from margrave.config import parse_overrides, read_config
    from margrave.data import fit_image
    from margrave.report import contact_sheet
    from margrave.training import latest_checkpoint

    console = Console(highlight=False)
    config = read_config(["demo"], parse_overrides(settings or []))
    if latest_checkpoint(output):
        console.print(f"replacing the demo of before in {output}", markup=False)
    run = Run(config, output, console)
    training = run.open_training()
    images = training.images.images
    rows = []
    for identity in range(min(8, len(images.class_names))):
        own = (images.labels == identity).nonzero()[0][:10]
        rows.append([fit_image(images.read(int(index)), 112) for index in own])
    contact_sheet(rows, output / "faces.png")
    said = f"made faces: one person per row in {output / 'faces.png'}"
    console.print(said, markup=False)

    untrained = run.judge_untrained()
    judged = run.train(training)
    show(console, judged)
    for name, found in judged.items():
        result = found.result
        low, high = result.intervals.accuracy if result.intervals else (None, None)
        console.print(
            f"[bold]{name}, identities never seen:[/bold] "
            f"{percent(untrained[name].result.accuracy)} % untrained -> "
            f"[bold green]{percent(result.accuracy)} %[/bold green] "
            f"(95 % interval {percent(low)} to {percent(high)})",
            soft_wrap=True,
        )
    said = f"faces.png, curves.png, results.json and model.safetensors are in {output}"
    console.print(said, markup=False)
