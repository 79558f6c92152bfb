"""Writes a run's metrics to a file of JSON lines and to the loggers, and reads the file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from margrave.files import read_json
from margrave.training.loggers import Loggers

MAX_VALUE = 1e300
"""Larger numbers are rejected as damaged. A JSON integer can be too large for a float."""
REQUIRED_FIELDS = {
    "training": ("step", "epoch", "loss"),
    "evaluation": ("step", "epoch", "set", "accuracy"),
    "adaptation": ("step", "epoch"),
}
"""Kind of line -> the fields that every such line must have."""


class MetricsLog:
    """Appends lines to ``metrics.jsonl``, after removing lines newer than the checkpoint.

    Args:
        folder: the run's folder; None writes nothing, as on all ranks but the first.
        loggers: names of loggers that also get every number, see `Loggers`.
        length: size in bytes that the file had at the checkpoint, to which it is truncated; 0 for
            a new run.
        step: number of steps done at the checkpoint.

    Raises:
        ValueError: a logger cannot start, or a line written before the checkpoint is damaged.
    """

    def __init__(
        self, folder: Path | None, loggers: Sequence[str] = (), length: int = 0, step: int = 0
    ) -> None:
        self._file, self._loggers = None, None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "a+b")  # noqa: SIM115 - open as long as the log
        self._file.truncate(min(length, self._file.seek(0, 2)))
        self._file.seek(0, 2)
        if self._file.tell():
            # A damaged line must fail now, not when the curves are drawn after training.
            read_metrics(folder / "metrics.jsonl")
        self._loggers = Loggers(loggers, folder, step)

    @property
    def length(self) -> int:
        """The file's current size in bytes."""
        return 0 if self._file is None else self._file.tell()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Append the line ``{"kind": …, "step": …, **values}``; send its numbers to the loggers.

        Infinite and NaN values are written as null, and not sent.
        """
        if self._file is None:
            return
        line = {"kind": kind, "step": step}
        for name, value in values.items():
            value = value.item() if isinstance(value, np.generic) else value
            is_valid = not isinstance(value, float) or math.isfinite(value)
            line[name] = value if is_valid else None
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._loggers is not None:
            numbers = {
                f"{kind}/{name}": value
                for name, value in line.items()
                if isinstance(value, int | float) and math.isfinite(value)
            }
            self._loggers.log(numbers, step)

    def close(self, succeeded: bool = True) -> None:
        """Close the file, and tell the loggers whether training came to its end."""
        if self._file is not None:
            self._file.close()
        if self._loggers is not None:
            self._loggers.close(succeeded)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, except a last line that a crash cut off.

    Raises:
        ValueError: a line is damaged; the message gives the line number.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    records = [read_json(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    for number, record in enumerate(records, start=1):
        problem = _find_problem(record)
        if problem:
            raise ValueError(f"{path}:{number} is damaged: {problem}; remove the line")
    return records


def _find_problem(line: Any) -> str | None:
    """What is wrong with a line of the metrics file, or None."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return "it has no kind"
    for name in REQUIRED_FIELDS.get(line["kind"], ()):
        if name not in line:
            return f"it has no {name}"
        value = line[name]
        # Losses and accuracies that are not finite are written as null.
        is_null = value is None and name in ("loss", "accuracy")
        if isinstance(value, int | float) and not abs(value) < MAX_VALUE:
            return f"{name} is {str(value)[:40]}"
        if not is_null and not isinstance(value, str if name == "set" else int | float):
            return f"{name} is {str(value)[:40]!r}"
    return None
