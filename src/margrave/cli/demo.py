"""``margrave demo``: train and evaluate a model in minutes, without any data."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write.")] = Path(
        "runs/demo"
    ),
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change any setting, such as training.epochs=5; repeatable."),
    ] = None,
) -> None:
    """Create synthetic faces, train on them with AdaFace, and evaluate on held-out identities."""
    from margrave.cli.console import Console
    from margrave.cli.options import show_results
    from margrave.cli.run_events import ConsoleEvents
    from margrave.config import parse_overrides, read_config
    from margrave.data import fit_image
    from margrave.evaluation.figure_text import interval_text, percent
    from margrave.pictures import contact_sheet
    from margrave.runs import Run, RunFolder

    console = Console(highlight=False)
    config = read_config(["demo"], parse_overrides(settings or []))
    if RunFolder(output).checkpoint:
        console.print(f"replacing the earlier demo in {output}", markup=False)
    run = Run(config, output, ConsoleEvents(console))
    training = run.open_training()
    # `training.images` augments images; its attribute `images` reads the originals.
    faces = training.images.images
    # The contact sheet shows up to 10 images of each of the first 8 identities.
    rows = []
    for identity in range(min(8, len(faces.class_names))):
        indices = (faces.labels == identity).nonzero()[0][:10]
        rows.append([fit_image(faces.read(int(index)), 112) for index in indices])
    contact_sheet(rows, output / "faces.png")
    message = f"created synthetic faces; {output / 'faces.png'} shows one identity per row"
    console.print(message, markup=False)

    untrained_results = run.evaluate_untrained()
    results = run.train(training)
    show_results(console, results)
    for untrained_result, result in zip(untrained_results, results, strict=True):
        accuracy = result.figure("accuracy")
        console.print(
            f"[bold]{result.name}, held-out identities:[/bold] "
            f"{percent(untrained_result.figure('accuracy').value)} % untrained -> "
            f"[bold green]{percent(accuracy.value)} %[/bold green] "
            f"(95 % interval {interval_text(accuracy.interval)})",
            soft_wrap=True,
        )
    message = f"faces.png, curves.png, results.json and model.safetensors are in {output}"
    console.print(message, markup=False)
