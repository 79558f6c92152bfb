"""The progress callback of long-running functions."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (units done, total units)."""
