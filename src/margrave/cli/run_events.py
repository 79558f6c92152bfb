"""Shows a run's messages and progress in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.markup import escape

from margrave.cli.console import Console
from margrave.cli.progress import counted, training_bar
from margrave.progress import Progress
from margrave.runs import RunEvents
from margrave.training import StepReport


class ConsoleEvents(RunEvents):
    """Prints messages as lines and progress as bars.

    Args:
        console: the console to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def counting(self, activity: str) -> AbstractContextManager[Progress]:
        """Show progress of an activity."""
        return counted(self.console, escape(activity))

    def training(self) -> AbstractContextManager[Callable[[StepReport], None]]:
        """Show progress of training."""
        return training_bar(self.console)
