"""Runs: from a configuration to a folder with the trained model and its results."""

from margrave.runs.events import RunEvents
from margrave.runs.folder import RunFolder
from margrave.runs.run import Run, open_evaluation_set

__all__ = ["Run", "RunEvents", "RunFolder", "open_evaluation_set"]
