"""Choose the precision, threads and epochs that all trainings of a study use."""

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
"""Steps that precede the measurement of a training's speed."""
MEASURED_SECONDS = 10.0
"""How long a training's speed is measured; a shorter training is measured to its end."""


class _SpeedMeasured(Exception):
    """Ends a training once its speed has been measured."""


def prepare(
    config: StudyConfig, budget: float | None, threads: int, message: Callable[[str], None]
) -> StudyConfig:
    """Choose the precision, the threads, and the number of epochs that fit into a budget.

    All trainings of a study must use the same values, even those that are resumed on another day.
    Therefore the values are chosen once, and stored in the study's settings.

    Args:
        config: the study.
        budget: seconds that one training may take; None keeps the epochs of the settings.
        threads: threads of each training, for settings with ``threads: auto``.
        message: called with a line of information.

    Returns:
        The study with these values as its ``prepared`` settings.

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
            # Measure every loss in the first condition: all train for as many epochs as the slowest
            # can within the budget.
            cells = list(cells_of(config, seeds=[config.first_seed]))
            cells = [cell for cell in cells if cell.condition == first.condition]
        message(f"measuring {quantity(len(cells), 'training')} on this machine")
        with tempfile.TemporaryDirectory() as folder:
            measured = [
                _measure(cell, prepared, budget is not None, Path(folder, str(index)))
                for index, cell in enumerate(cells)
            ]
        prepared["precision"], _ = measured[0]
        if budget is not None:
            slowest = max(epoch_seconds for _, epoch_seconds in measured)
            epochs = int(budget / slowest)
            if epochs < 1:
                raise ValueError(
                    f"one epoch takes {slowest:.0f} s here, more than the budget of {budget:.0f} "
                    "s; raise --budget, or use fewer images or a smaller network"
                )
            prepared["epochs"] = epochs
            message(
                f"{quantity(epochs, 'epoch')} in {budget:.0f} s: an epoch of the slowest loss takes"
                f" {slowest:.1f} s"
            )
    return config.model_copy(update={"prepared": prepared})


def _measure(cell: Cell, prepared: dict[str, Any], timed: bool, folder: Path) -> tuple[str, float]:
    """Return the precision that a training chooses, and its seconds per epoch (0 unless timed)."""
    # Log as few steps as possible, so that logging takes no time.
    training = cell.config.training.model_copy(update={**prepared, "log_steps": 10**9})
    config: RunConfig = cell.config.model_copy(update={"training": training})
    run = Run(config, folder)
    opened = run.open_training()
    precision = opened.precision.precision
    if not timed:
        return precision, 0.0
    start_step, start_time = 0, time.monotonic()
    epoch_seconds = 0.0

    def report(progress: StepReport) -> None:
        nonlocal start_step, start_time, epoch_seconds
        now = time.monotonic()
        # The last step is measured in any case.
        if progress.step <= min(WARM_UP_STEPS, progress.steps - 1):
            start_step, start_time = progress.step, now
        else:
            step_seconds = (now - start_time) / (progress.step - start_step)
            epoch_seconds = step_seconds * progress.epoch_steps
            if now - start_time >= MEASURED_SECONDS or progress.step == progress.steps:
                raise _SpeedMeasured

    with suppress(_SpeedMeasured):
        fit(opened, folder, report=report)
    return precision, epoch_seconds
