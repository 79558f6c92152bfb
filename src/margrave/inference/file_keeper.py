"""Where an evaluation that may be interrupted leaves its state."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from margrave.distributed import World
from margrave.evaluation import State
from margrave.files import atomic_write

SECONDS_BETWEEN_STATES = 2.0
SHARE_OF_TIME = 0.05
"""Where writing a state takes long, they are as much rarer."""
# What numpy raises at files that are no archives of arrays, depending on what they are instead.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
)


def state_of_rank(path: str | Path, world: World) -> Path:
    """Where a rank keeps its state; each has a file of its own.

    >>> state_of_rank("here.state", World(rank=1, size=2)).name
    'here.state.1'
    """
    path = Path(path)
    return path.with_name(f"{path.name}.{world.rank}") if world.size > 1 else path


class FileKeeper:
    """Keeps the state of an evaluation in a file, now and then, so that it can be interrupted.

    Args:
        path: of the file; one of another evaluation is refused.
        what: what is evaluated, as JSON.
        seconds: between two states, at least; 0 writes every one.

    Raises:
        ValueError: a file of another evaluation, or a damaged one.
    """

    def __init__(
        self, path: str | Path, what: str, seconds: float = SECONDS_BETWEEN_STATES
    ) -> None:
        self.path, self.what, self.seconds = Path(path), what, seconds
        self._states: dict[str, State] = {}
        self._next = time.monotonic() + seconds
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            found = str(arrays.pop("what"))
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.path} is no evaluation's state, or a damaged one; delete it to begin anew, "
                "or give another file"
            ) from error
        if found != self.what:
            raise ValueError(
                f"{self.path} belongs to another evaluation, or to another number of processes "
                "(--devices); delete it, or give another file"
            )
        for key, array in arrays.items():
            name, part, *rest = key.split("/")
            state = self._states.setdefault(name, {})
            if rest:
                state.setdefault(part, {})[rest[0]] = array
            else:
                state[part] = array

    def load(self, name: str) -> State | None:
        """What was kept under the name."""
        return self._states.get(name)

    def offer(self, name: str, told: Callable[[], State]) -> None:
        """Write the state if the last one is old enough."""
        started = time.monotonic()
        if started < self._next:
            return
        self._states[name] = told()
        arrays: dict[str, Any] = {"what": np.array(self.what)}
        for each, state in self._states.items():
            for part, value in state.items():
                if isinstance(value, dict):
                    arrays |= {f"{each}/{part}/{key}": array for key, array in value.items()}
                else:
                    arrays[f"{each}/{part}"] = np.array(value)
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
        ended = time.monotonic()
        if self.seconds:
            self._next = ended + max(self.seconds, (ended - started) / SHARE_OF_TIME)
