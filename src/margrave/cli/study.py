"""``margrave study``: test which loss is best on your data."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from margrave.quantity import quantity

if TYPE_CHECKING:
    from margrave.cli.console import Console
    from margrave.studies import GridProgress, StudyOutcome

MIN_PAIRS, MAX_PAIRS = 20, 6000
"""Minimum and maximum number of pairs that are drawn for validation, and likewise for the test."""


def study(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            help="Studies (`margrave study --list`) or YAML files, merged in order; default: "
            "the study named losses."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images to train and test on; they are split by identity into training, "
            "validation and test."
        ),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            help="Compare these losses, separated by commas, instead of the study's losses."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Number of runs per loss; p values need at least two."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Maximum time of one run on this machine, such as 90s, 10m or 2h. All losses "
            "train for as many epochs as the slowest one can in that time."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Number of runs at a time; default: one per GPU, or per core."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The study's folder; default: studies/NAME."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change any setting, such as run.training.epochs=5; repeatable."
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Resume the study in this folder.")] = None,
    train: Annotated[
        bool,
        typer.Option(
            "--train/--no-train",
            help="Train the unfinished runs, or only compare the finished ones. You can compare "
            "while other runs are training.",
        ),
    ] = True,
    trust_code: Annotated[
        bool,
        typer.Option(
            "--trust-code", help="With --resume: import and run custom code that the study names."
        ),
    ] = False,
    list_studies: Annotated[
        bool, typer.Option("--list", help="List the studies that come with Margrave.")
    ] = False,
) -> None:
    """Compare losses: train each with several seeds at the same budget, and test the differences.

    You can stop a study at any time; the same command resumes it.
    """
    from margrave.cli.console import Console

    console = Console(highlight=False)
    if list_studies:
        _print_studies(console)
        return
    from margrave.config import merge, parse_overrides
    from margrave.studies import StudyFolder, read_study, run_study

    overrides = parse_overrides(settings or [])
    if seeds is not None:
        overrides = merge({"seeds": seeds}, overrides)
    if resume is not None:
        if any((studies, data, losses, budget, output)):
            raise ValueError(
                "--resume uses the study's own settings; you can add only --seeds, --devices, "
                "--no-train, --trust-code and --set"
            )
        folder = resume
        config = StudyFolder(folder).read_config(overrides, trust_code)
    else:
        names = studies or ["losses"]
        folder = output or Path("studies") / Path(names[-1]).stem
        loss_names = None if losses is None else [name.strip() for name in losses.split(",")]
        config = read_study([*names, _data_settings(data, names)], overrides, loss_names)
    try:
        outcome = run_study(
            config,
            folder,
            budget=None if budget is None else _parse_duration(budget),
            devices=devices,
            events=_console_events(console),
            train=train,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; resume with: margrave study --resume {folder}", markup=False)
        raise typer.Exit(130) from None
    _print_outcome(console, outcome)
    if outcome.results:
        console.print(f"results.json and figures.csv are in {folder}", markup=False, soft_wrap=True)
        console.print(f"write a report: margrave report {folder}", markup=False, soft_wrap=True)
    if outcome.failed:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in outcome.failed.items())
        raise ValueError(
            f"{quantity(len(outcome.failed), 'run')} failed:\n{lines}\n"
            f"the finished runs are kept; try again with: margrave study --resume {folder}"
        )


def _print_studies(console: "Console") -> None:
    from rich.table import Table

    from margrave.recipes import study_names, study_text

    table = Table("study", "question")
    for name in study_names():
        table.add_row(name, study_text(name).splitlines()[0].removeprefix("#").strip())
    console.print(table)
    console.print("Run one: margrave study NAME")


def _data_settings(data: str | None, names: list[str]) -> dict[str, Any]:
    """Return the settings that split the user's images by identity; none without --data.

    Args:
        data: the value of --data.
        names: the studies' names or files.

    Raises:
        ValueError: there are no images, or too few per identity.
    """
    from margrave.data import detect_source, max_balanced_pairs, open_source

    if data is None:
        if names == ["losses"]:
            raise ValueError(
                "no images: give --data FOLDER, or a study that has images (margrave study --list)"
            )
        return {}
    images = detect_source(data if "://" in data else Path(data).resolve())
    train, validation, test = (
        {"kind": "part", "images": images, "part": name} for name in ("train", "validation", "test")
    )
    sets = {}
    for name, source in (("validation", validation), ("test", test)):
        num_pairs = min(MAX_PAIRS, max_balanced_pairs(open_source(source, labeled=True).labels))
        if num_pairs < MIN_PAIRS:
            raise ValueError(
                f"{data}: the identities for {name} have too few images for {MIN_PAIRS} balanced "
                "pairs; add identities with several images each"
            )
        sets[name] = {"images": source, "pairs": num_pairs}
    return {"run": {"data": {"train": train}, "evaluation": {"sets": sets}}}


def _parse_duration(text: str) -> float:
    """Convert a duration such as 90s, 10m or 2h to seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"--budget {text} is not a duration; write 90s, 10m or 2h") from None
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--budget {text} must be a finite time above 0")
    return seconds


def _console_events(console: "Console") -> Any:
    """Create the events that show a study's messages and progress in a console."""
    from margrave.cli.progress import show_grid_progress
    from margrave.studies import StudyEvents

    class ConsoleEvents(StudyEvents):
        def message(self, text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        def training(self, what: str) -> "AbstractContextManager[Callable[[GridProgress], None]]":
            return show_grid_progress(console, what)

    return ConsoleEvents()


def _print_outcome(console: "Console", outcome: "StudyOutcome") -> None:
    """Print the study's question, and a table and notes for each comparison."""
    from margrave.cli.tables import study_table

    config = outcome.config
    if config.question:
        console.print(config.question, markup=False, soft_wrap=True)
    comparisons = [*outcome.comparisons.values(), *outcome.tuned_comparisons.values()]
    for comparison, result in zip(comparisons, outcome.results, strict=True):
        console.print(study_table(result.name, comparison, config.metric))
        for note in result.notes:
            console.print(note, markup=False, soft_wrap=True)
    if not outcome.comparisons and not outcome.failed:
        console.print("nothing to compare yet: no seed is finished for all losses")
