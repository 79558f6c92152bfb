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
"""Time after which the first line is printed, if there is no terminal."""
MIN_PAUSE, MAX_PAUSE = 10.0, 60.0
"""Bounds in seconds of the time between two lines; within them, each tenth of the work is a
line."""


@contextmanager
def counted(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress, which is reported by calls with (done, total).

    In a terminal it is a bar. Elsewhere, for tasks longer than two seconds, it is lines such as
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
    """Progress as plain lines."""

    def __init__(self, console: Console, description: str) -> None:
        self._console, self._description = console, description
        self._printed_at = time.monotonic() - MIN_PAUSE + FIRST_LINE_SECONDS
        self._printed_share: float | None = None
        self._share = 0.0
        # Count and time of the first report: work done before a resumption does not count as speed.
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> None:
        now, share = time.monotonic(), done / total if total else 1.0
        if self._first is None or share < self._share:
            self._first = done, now
            self._printed_share = None
        self._share = share
        if not self._is_due(now, share):
            return
        self._printed_at, self._printed_share = now, share
        line = f"{self._description}: {done:,} of {total:,} ({100 * share:.0f} %)"
        steps, seconds = done - self._first[0], now - self._first[1]
        if steps and seconds:
            rate = steps / seconds
            line += f", {rate:.2f}/s" if rate < 10 else f", {rate:,.0f}/s"
            line += f", {clock((total - done) / rate)} left" if done < total else ""
        self._console.print(line, markup=False, soft_wrap=True)

    def _is_due(self, now: float, share: float) -> bool:
        pause = now - self._printed_at
        if self._printed_share is None:
            return pause >= MIN_PAUSE
        tenth = share >= min(1.0, self._printed_share + 0.1)
        return self._printed_share < 1 and (
            share >= 1 or pause >= MAX_PAUSE or (tenth and pause >= MIN_PAUSE)
        )


def clock(seconds: float) -> str:
    """A duration as ``m:ss`` or ``h:mm:ss``.

    >>> clock(59), clock(3723)
    ('0:59', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[StepReport], None]]:
    """Show progress of training: epoch, loss, images per second and the time left.

    In a terminal it is a bar. Elsewhere it is one line per epoch, and per minute in long epochs.
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

        def report(step: StepReport) -> None:
            values = {
                "completed": step.step,
                "total": step.steps,
                "epoch": f"{step.epoch}/{step.epochs}",
                "state": _state(step),
                "speed": step.images_per_second,
            }
            if progress.tasks:
                progress.update(progress.tasks[0].id, **values)
            else:
                progress.add_task("", **values)

        yield report


def _state(step: StepReport) -> str:
    """Loss and mean cosine between images and their own class centers."""
    cosine = "" if step.target_cosine is None else f", cosine {step.target_cosine:.2f}"
    return f"loss {step.loss:.3f}{cosine}"


class _TrainingLines:
    """Progress of training as plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # Step and time of the last line, or of the first report.
        self._last: tuple[int, float] | None = None

    def __call__(self, step: StepReport) -> None:
        now = time.monotonic()
        self._last = self._last or (step.step, now)
        ends_epoch = step.epoch_step == step.epoch_steps
        if not ends_epoch and now - self._last[1] < MAX_PAUSE:
            return
        line = f"epoch {step.epoch}/{step.epochs}: "
        if not ends_epoch:
            line += f"step {step.epoch_step:,} of {step.epoch_steps:,}, "
        line += f"{_state(step)}, {step.images_per_second:.0f} images/s"
        steps, seconds = step.step - self._last[0], now - self._last[1]
        # By the speed since the last line, since other work on the machine comes and goes.
        if steps and step.step < step.steps and seconds >= FIRST_LINE_SECONDS:
            line += f", {clock((step.steps - step.step) * seconds / steps)} left"
        self._last = step.step, now
        self._console.print(line, markup=False, soft_wrap=True)


@contextmanager
def grid_bar(console: Console, what: str) -> Iterator[Callable[[GridProgress], None]]:
    """Show the progress of a grid of trainings (losses × seeds), and the time left.

    In a terminal it is a bar. Elsewhere it is a line whenever a training has ended, at most one in
    ten seconds.
    """
    started, first = time.monotonic(), None
    if not console.is_interactive:
        printed_at, printed = 0.0, -1

        def print_line(progress: GridProgress) -> None:
            nonlocal first, printed_at, printed
            now = time.monotonic()
            first = progress.done if first is None else first
            ended = progress.finished + len(progress.failed)
            if ended == printed or (now - printed_at < MIN_PAUSE and ended < progress.total):
                return
            printed_at, printed = now, ended
            line = f"{what}: {progress.finished} of {progress.total} finished"
            line += f", {len(progress.failed)} failed" if progress.failed else ""
            left = _seconds_left(progress, first, now - started)
            line += f", {clock(left)} left" if left else ""
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
        task = bar.add_task(what, state="", left="")

        def report(progress: GridProgress) -> None:
            nonlocal first
            first = progress.done if first is None else first
            left = _seconds_left(progress, first, time.monotonic() - started)
            state = f"{progress.finished}/{progress.total}, {len(progress.running)} running"
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                state=state + (f", {len(progress.failed)} failed" if progress.failed else ""),
                left=f"left {clock(left)}" if left else "",
            )

        yield report


def _seconds_left(progress: GridProgress, first: float, seconds: float) -> float | None:
    """The time that the rest of a grid takes at the speed so far; None if that is unknown."""
    done = progress.done - first
    return (progress.total - progress.done) * seconds / done if done > 0 and seconds > 1 else None
