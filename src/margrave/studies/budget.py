"""What is measured once where a study begins, so that all its trainings are alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from margrave.config import RunConfig
from margrave.quantity import quantity
from margrave.runs import Run
from margrave.studies.settings import Cell, StudyConfig, cells_of
from margrave.training import StepReport, fit

WARM_UP_STEPS = 5
MEASURED_SECONDS = 10.0


class _Measured(Exception):
    """Ends a training whose speed is known."""


def prepare(
    config: StudyConfig, budget: float | None, threads: int, message: Callable[[str], None]
) -> StudyConfig:
    """Choose what a run would choose for itself: precision, threads, and epochs within a budget.

    Every training of a study must have the same ones, on any later day too; so they are measured
    with the first training and kept in the study's settings.

    Args:
        config: the study.
        budget: seconds that one training may take; None keeps the epochs of the settings.
        threads: threads of each training.
        message: called with a line of information.

    Raises:
        ValueError: the budget does not suffice for one epoch.
    """
    first = next(cells_of(config))
    prepared: dict[str, Any] = {}
    settings = first.config.training
    if settings.threads == "auto":
        prepared["threads"] = threads
    if settings.precision == "auto" or budget is not None:
        cells = [first]
        if budget is not None:
            # The slowest loss decides: all get its number of steps.
            cells = list(cells_of(config, seeds=[config.first_seed]))
            cells = [cell for cell in cells if cell.condition == first.condition]
        message(f"measuring {quantity(len(cells), 'training')} on this machine")
        with tempfile.TemporaryDirectory() as folder:
            measured = [
                _measure(cell, prepared, budget is not None, Path(folder, str(number)))
                for number, cell in enumerate(cells)
            ]
        prepared["precision"] = measured[0][0]
        if budget is not None:
            seconds = max(each[1] for each in measured)
            epochs = int(budget / seconds)
            if epochs < 1:
                raise ValueError(
                    f"one epoch takes {seconds:.0f} s here, more than the budget of {budget:.0f} "
                    "s; raise --budget, or use fewer images or a smaller network"
                )
            prepared["epochs"] = epochs
            message(
                f"{quantity(epochs, 'epoch')} in {budget:.0f} s: one takes {seconds:.1f} s at most"
            )
    return config.model_copy(update={"prepared": prepared})


def _measure(cell: Cell, prepared: dict[str, Any], timed: bool, folder: Path) -> tuple[str, float]:
    """The precision that a training chooses, and if timed the seconds of an epoch."""
    training = cell.config.training.model_copy(update={**prepared, "log_steps": 10**9})
    config: RunConfig = cell.config.model_copy(update={"training": training})
    run = Run(config, folder)
    opened = run.open_training()
    precision = opened.precision.precision
    if not timed:
        return precision, 0.0
    start: tuple[int, float] | None = None
    seconds = 0.0

    def report(step: StepReport) -> None:
        nonlocal start, seconds
        now = time.monotonic()
        if step.step <= WARM_UP_STEPS:
            start = step.step, now
        elif start is not None:
            seconds = (now - start[1]) / (step.step - start[0]) * step.epoch_steps
            if now - start[1] >= MEASURED_SECONDS or step.step == step.steps:
                raise _Measured

    with suppress(_Measured):
        fit(opened, folder, report=report)
    return precision, seconds
