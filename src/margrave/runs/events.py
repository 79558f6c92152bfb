"""The events that a run reports while it works; the caller decides how to show them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from margrave.progress import Progress
from margrave.training import StepReport


class RunEvents:
    """Receives the events of a run; this base class ignores them all."""

    def message(self, text: str) -> None:
        """Report a line of information."""

    def counting(self, activity: str) -> AbstractContextManager[Progress]:
        """Report an activity's progress: the context yields a callback that takes (done, total)."""
        del activity
        return nullcontext(lambda done, total: None)

    def training(self) -> AbstractContextManager[Callable[[StepReport], None]]:
        """Report training progress: the context yields a callback that takes each step's report."""
        return nullcontext(lambda step: None)
