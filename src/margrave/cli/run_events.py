"""Show a run's messages and progress in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.markup import escape

from margrave.cli.console import Console
from margrave.cli.progress import show_progress, show_training_progress
from margrave.progress import Progress
from margrave.runs import RunEvents
from margrave.training import StepReport


class ConsoleEvents(RunEvents):
    """Prints a run's messages and shows its progress in a console.

    Args:
        console: the console to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        """Print a message."""
        self.console.print(text, markup=False, soft_wrap=True)

    def counting(self, activity: str) -> AbstractContextManager[Progress]:
        """Show an activity's progress; the context yields a function that takes (done, total)."""
        return show_progress(self.console, escape(activity))

    def training(self) -> AbstractContextManager[Callable[[StepReport], None]]:
        """Show training progress; the context yields a function that takes each step's report."""
        return show_training_progress(self.console)
