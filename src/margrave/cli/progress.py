"""Progress bars for whatever takes longer than a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from margrave.training import StepReport


@contextmanager
def counted(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar driven by calls with (done, total); none before the first."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:

        def report(done: int, total: int) -> None:
            task = progress.task_ids[0] if progress.tasks else progress.add_task(description)
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[StepReport], None]]:
    """A bar of steps with epoch, loss, images per second and the time left; a line an epoch where
    there is no terminal."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def report(step: StepReport) -> None:
            shown = {
                "completed": step.step,
                "total": step.steps,
                "epoch": f"{step.epoch}/{step.epochs}",
                "loss": step.loss,
                "speed": step.images_per_second,
            }
            if progress.tasks:
                progress.update(progress.tasks[0].id, **shown)
            else:
                progress.add_task("", **shown)
            # A file or a pipe shows no bar.
            if progress.disable and step.step % (step.steps // step.epochs) == 0:
                line = "epoch {epoch}: loss {loss:.3f}, {speed:.0f} images/s".format(**shown)
                console.print(line, markup=False)

        yield report
