"""Progress of long tasks: bars in a terminal, lines in a pipe or a file."""

from __future__ import annotations

import time
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
    from margrave.studies import GridProgress
    from margrave.training import StepReport

FIRST_LINE_SECONDS = 2.0
"""Seconds until the first line is printed, if there is no terminal."""
MIN_PAUSE, MAX_PAUSE = 10.0, 60.0
"""Minimum and maximum number of seconds between two lines; the last line need not wait. After the
minimum, a line is printed if another tenth of the work is done."""


@contextmanager
def show_progress(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a task; yield a function to call with (done, total).

    In a terminal, this shows a bar. Elsewhere, tasks longer than two seconds print lines such as
    ``embedding: 640 of 13,233 (5 %), 213/s, 0:59 left``.
    """
    if not console.is_interactive:
        yield _Lines(console, description)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:

        def report(done: int, total: int) -> None:
            task = progress.task_ids[0] if progress.tasks else progress.add_task(description)
            progress.update(task, completed=done, total=total)

        yield report


class _Lines:
    """Prints the progress of a task as plain lines, when called with (done, total)."""

    def __init__(self, console: Console, description: str) -> None:
        self._console, self._description = console, description
        # Time of the last line. No line is printed yet; with this value, the first one can be
        # printed FIRST_LINE_SECONDS from now.
        self._printed_at = time.monotonic() - MIN_PAUSE + FIRST_LINE_SECONDS
        # Share of the task that was done in the last printed line, from 0 to 1; None if no line of
        # this task is printed yet.
        self._printed_share: float | None = None
        # The same in the last report, printed or not.
        self._share = 0.0
        # Count and time of the first report. A resumed task starts with a count above 0; this
        # earlier work must not count towards the speed.
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        now, share = time.monotonic(), done / total if total else 1.0
        if self._first is None or share < self._share:
            # This is the first report, or the share fell because a new task has begun.
            self._first = done, now
            self._printed_share = None
        self._share = share
        if not self._should_print(now, share):
            return
        self._printed_at, self._printed_share = now, share
        line = f"{self._description}: {done:,} of {total:,} ({100 * share:.0f} %)"
        newly_done, seconds = done - self._first[0], now - self._first[1]
        if newly_done and seconds:
            rate = newly_done / seconds
            line += f", {rate:.2f}/s" if rate < 10 else f", {rate:,.0f}/s"
            line += f", {clock((total - done) / rate)} left" if done < total else ""
        self._console.print(line, markup=False, soft_wrap=True)

    def _should_print(self, now: float, share: float) -> bool:
        """Whether to print a line now, when this share of the task is done."""
        pause = now - self._printed_at
        if self._printed_share is None:
            return pause >= MIN_PAUSE
        another_tenth = share >= min(1.0, self._printed_share + 0.1)
        return self._printed_share < 1 and (
            share >= 1 or pause >= MAX_PAUSE or (another_tenth and pause >= MIN_PAUSE)
        )


def clock(seconds: float) -> str:
    """Format a duration as ``m:ss`` or ``h:mm:ss``.

    >>> clock(59), clock(3723)
    ('0:59', '1:02:03')
    """
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{whole_seconds:02}"
    return f"{minutes}:{whole_seconds:02}"


@contextmanager
def show_training_progress(console: Console) -> Iterator[Callable[[StepReport], None]]:
    """Show the progress of training: epoch, loss, images per second and remaining time.

    Yields a function to call with a report after each step.

    In a terminal, this shows a bar. Elsewhere, it prints a line at the end of each epoch and, in
    long epochs, every minute.
    """
    if not console.is_interactive:
        yield _TrainingLines(console)
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}  {task.fields[speed]:.0f} images/s"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def update(report: StepReport) -> None:
            values = {
                "completed": report.step,
                "total": report.steps,
                "epoch": f"{report.epoch}/{report.epochs}",
                "state": _loss_text(report),
                "speed": report.images_per_second,
            }
            if progress.tasks:
                progress.update(progress.tasks[0].id, **values)
            else:
                progress.add_task("", **values)

        yield update


def _loss_text(report: StepReport) -> str:
    """Describe the loss and, if the report contains it, the mean cosine to the class center."""
    cosine = "" if report.target_cosine is None else f", cosine {report.target_cosine:.2f}"
    return f"loss {report.loss:.3f}{cosine}"


class _TrainingLines:
    """Prints the progress of training as plain lines, when called with a step's report."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Step and time of the last printed line, or of the first report if no line is printed yet.
        self._last: tuple[int, float] | None = None

    def __call__(self, report: StepReport) -> None:
        now = time.monotonic()
        self._last = self._last or (report.step, now)
        ends_epoch = report.epoch_step == report.epoch_steps
        if not ends_epoch and now - self._last[1] < MAX_PAUSE:
            return
        line = f"epoch {report.epoch}/{report.epochs}: "
        if not ends_epoch:
            line += f"step {report.epoch_step:,} of {report.epoch_steps:,}, "
        line += f"{_loss_text(report)}, {report.images_per_second:.0f} images/s"
        new_steps, seconds = report.step - self._last[0], now - self._last[1]
        # Use the speed since the last line, not since the start: other programs may have slowed
        # the machine for a while. Less than FIRST_LINE_SECONDS is too short to measure a speed.
        if new_steps and report.step < report.steps and seconds >= FIRST_LINE_SECONDS:
            line += f", {clock((report.steps - report.step) * seconds / new_steps)} left"
        self._last = report.step, now
        self._console.print(line, markup=False, soft_wrap=True)


@contextmanager
def show_grid_progress(
    console: Console, description: str
) -> Iterator[Callable[[GridProgress], None]]:
    """Show the progress and remaining time of a grid of training runs (losses × seeds).

    Yields a function to call with the grid's progress. In a terminal, this shows a bar. Elsewhere,
    it prints a line when a run ends, at most one every ten seconds, except the last.
    """
    started_at, done_at_start = time.monotonic(), None
    if not console.is_interactive:
        # With these values, the first report is printed at once, even if no run has ended yet.
        printed_at, printed_num_ended = 0.0, -1

        def print_line(progress: GridProgress) -> None:
            nonlocal done_at_start, printed_at, printed_num_ended
            now = time.monotonic()
            done_at_start = progress.done if done_at_start is None else done_at_start
            num_ended = progress.finished + len(progress.failed)
            if num_ended == printed_num_ended:
                return
            if now - printed_at < MIN_PAUSE and num_ended < progress.total:
                return
            printed_at, printed_num_ended = now, num_ended
            line = f"{description}: {progress.finished} of {progress.total} finished"
            line += f", {len(progress.failed)} failed" if progress.failed else ""
            seconds = _remaining_seconds(progress, done_at_start, now - started_at)
            line += f", {clock(seconds)} left" if seconds else ""
            console.print(line, markup=False, soft_wrap=True)

        yield print_line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, state="", left="")

        def report(progress: GridProgress) -> None:
            nonlocal done_at_start
            done_at_start = progress.done if done_at_start is None else done_at_start
            seconds = _remaining_seconds(progress, done_at_start, time.monotonic() - started_at)
            state = f"{progress.finished}/{progress.total}, {len(progress.running)} running"
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                state=state + (f", {len(progress.failed)} failed" if progress.failed else ""),
                left=f"left {clock(seconds)}" if seconds else "",
            )

        yield report


def _remaining_seconds(
    progress: GridProgress, done_at_start: float, elapsed: float
) -> float | None:
    """Estimate the seconds until a grid is finished from its speed so far.

    Return None if at most a second has passed, or if nothing was done in this time.

    Args:
        progress: the grid's progress.
        done_at_start: ``progress.done`` in the first report: a number of runs, with fractions of
            running ones.
        elapsed: seconds since the display was started.
    """
    newly_done = progress.done - done_at_start
    if newly_done <= 0 or elapsed <= 1:
        return None
    return (progress.total - progress.done) * elapsed / newly_done
