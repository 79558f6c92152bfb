"""``margrave study``: which loss is better on your data, with significance."""

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
"""Bounds of the number of pairs that are drawn from the user's images."""


def study(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            help="Studies (`margrave study --list`) or YAML files, merged; default: losses."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Images to train and test on; identities are split, so that none is in two parts."
        ),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(help="Compare these losses instead, separated by commas."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings of each loss; p values need at least two.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for each training on this machine, such as 90s, 10m or 2h; all losses get "
            "as many steps."
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings at a time; default: one per GPU, or per core."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The study's folder.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change any setting, such as run.training.epochs=5; repeatable."
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the study in this folder.")
    ] = None,
    train: Annotated[
        bool,
        typer.Option(
            "--train/--no-train",
            help="Train what is not finished, or only compare what is, even while others train.",
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
    """Compare losses: train each with several seeds at one budget, and test the differences.

    You can stop a study at any time; the same command goes on with it.
    """
    from margrave.cli.console import Console

    console = Console(highlight=False)
    if list_studies:
        _list(console)
        return
    from margrave.config import merge, parse_overrides
    from margrave.studies import StudyFolder, read_study, run_study

    overrides = parse_overrides(settings or [])
    if seeds is not None:
        overrides = merge({"seeds": seeds}, overrides)
    if resume is not None:
        if any((studies, data, losses, budget, output)):
            raise ValueError(
                "--resume uses the study's own settings; besides it, give only --seeds, --devices, "
                "--no-train and --set"
            )
        folder = resume
        config = StudyFolder(folder).read_config(overrides, trust_code)
    else:
        names = studies or ["losses"]
        folder = output or Path("studies") / Path(names[-1]).stem
        chosen = None if losses is None else [name.strip() for name in losses.split(",")]
        config = read_study([*names, _images(data, names)], overrides, chosen)
    try:
        outcome = run_study(
            config,
            folder,
            budget=None if budget is None else _seconds(budget),
            devices=devices,
            events=_events(console),
            train=train,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; resume with: margrave study --resume {folder}", markup=False)
        raise typer.Exit(130) from None
    _show(console, outcome)
    console.print(f"results.json and figures.csv are in {folder}", markup=False, soft_wrap=True)
    if outcome.results:
        console.print(f"see it as a page: margrave report {folder}", markup=False, soft_wrap=True)
    if outcome.failed:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in outcome.failed.items())
        raise ValueError(
            f"{quantity(len(outcome.failed), 'training')} failed:\n{lines}\n"
            f"the others are kept; try again with: margrave study --resume {folder}"
        )


def _list(console: "Console") -> None:
    from rich.table import Table

    from margrave.recipes import study_names, study_text

    table = Table("study", "what it asks")
    for name in study_names():
        table.add_row(name, study_text(name).splitlines()[0].removeprefix("#").strip())
    console.print(table)
    console.print("Run one: margrave study NAME")


def _images(data: str | None, names: list[str]) -> dict[str, Any]:
    """The settings by which a study trains and tests on disjoint identities of the user's."""
    from margrave.data import detect_source, max_balanced_pairs, open_source

    if data is None:
        if names == ["losses"]:
            raise ValueError(
                "no images: give --data FOLDER, or one of the studies of `margrave study --list`"
            )
        return {}
    images = detect_source(data if "://" in data else Path(data).resolve())
    train, validation, test = (
        {"kind": "part", "images": images, "part": name} for name in ("train", "validation", "test")
    )
    sets = {}
    for name, part in (("validation", validation), ("test", test)):
        pairs = min(MAX_PAIRS, max_balanced_pairs(open_source(part, labeled=True).labels))
        if pairs < MIN_PAIRS:
            raise ValueError(
                f"{data}: the people for {name} have too few images for {MIN_PAIRS} balanced "
                "pairs; add people with several images each"
            )
        sets[name] = {"images": part, "pairs": pairs}
    return {"run": {"data": {"train": train}, "evaluation": {"sets": sets}}}


def _seconds(text: str) -> float:
    """The seconds of a duration such as 90s, 10m or 2h."""
    units = {"s": 1, "m": 60, "h": 3600}
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"--budget {text} is not a duration; write 90s, 10m or 2h") from None
    if not 0 < seconds < float("inf"):
        raise ValueError(f"--budget {text} must be longer than 0")
    return seconds


def _events(console: "Console") -> Any:
    from margrave.cli.progress import grid_bar
    from margrave.studies import StudyEvents

    class ConsoleEvents(StudyEvents):
        def message(self, text: str) -> None:
            console.print(text, markup=False, soft_wrap=True)

        def training(self, what: str) -> "AbstractContextManager[Callable[[GridProgress], None]]":
            return grid_bar(console, what)

    return ConsoleEvents()


def _show(console: "Console", outcome: "StudyOutcome") -> None:
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
        console.print("no seed of every loss is finished yet")
