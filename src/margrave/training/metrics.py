"""A run's curve: JSON lines, and TensorBoard where asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from margrave.files import read_json

NEEDED = {"training": ("step", "epoch", "loss"), "evaluation": ("step", "epoch", "set", "accuracy")}
"""What lines of each kind have at least."""


class MetricsLog:
    """Appends lines to ``metrics.jsonl`` and forgets those written after a checkpoint.

    Args:
        folder: the run's folder; None keeps nothing, for all ranks but the first.
        tensorboard: write events beside the lines.
        length: bytes that a checkpoint vouches for; later ones are cut off.
        step: where TensorBoard goes on.

    Raises:
        ValueError: TensorBoard is asked for and not installed; a line that is kept is damaged.
    """

    def __init__(
        self, folder: Path | None, tensorboard: bool = False, length: int = 0, step: int = 0
    ) -> None:
        self._file, self._events = None, None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / "metrics.jsonl", "a+b")  # noqa: SIM115 - open as long as the log
        self._file.truncate(min(length, self._file.seek(0, 2)))
        self._file.seek(0, 2)
        if self._file.tell():
            # Else the run would train to its end before its curves cannot be drawn.
            read_metrics(folder / "metrics.jsonl")
        self._events = _event_writer(folder, step) if tensorboard else None

    @property
    def length(self) -> int:
        """Bytes so far."""
        return 0 if self._file is None else self._file.tell()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line: ``{"kind": …, "step": …, **values}``."""
        if self._file is None:
            return
        line = {"kind": kind, "step": step}
        for name, value in values.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            line[name] = value if finite else None
        self._file.write(json.dumps(line, allow_nan=False, default=str).encode() + b"\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close the files."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "training.tensorboard needs TensorBoard: install margrave[track], or set it to false"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut off by a crash is left out.

    Raises:
        ValueError: a line that is damaged, with its number.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    values = [read_json(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
    for number, value in enumerate(values, start=1):
        wrong = _wrong(value)
        if wrong:
            raise ValueError(f"{path}:{number} is damaged: {wrong}; remove the line")
    return values


def _wrong(line: Any) -> str | None:
    """What a line of metrics lacks."""
    if not isinstance(line, dict) or not isinstance(line.get("kind"), str):
        return "it has no kind"
    for name in NEEDED.get(line["kind"], ()):
        if name not in line:
            return f"it has no {name}"
        value = line[name]
        # Losses and accuracies that are not finite are written as null.
        unknown = value is None and name in ("loss", "accuracy")
        if not unknown and not isinstance(value, str if name == "set" else int | float):
            return f"{name} is {str(value)[:40]!r}"
    return None
