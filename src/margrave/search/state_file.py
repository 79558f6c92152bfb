"""Saves the state of an evaluation to a file, so that it can be resumed."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from margrave.distributed import World
from margrave.files import atomic_write
from margrave.search.score_blocks import State

SECONDS_BETWEEN_SAVES = 2.0
MAX_SAVING_SHARE = 0.05
"""Largest share of the run time to spend on saving. The longer a save takes, the later the next."""
# The exceptions that NumPy raises for damaged archives and for files that are not archives.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,  # for encrypted archives; includes NotImplementedError, for unknown compression
    zipfile.BadZipFile,
    zlib.error,
)


def rank_state_path(path: str | Path, world: World) -> Path:
    """The path of a rank's state file; each rank has a separate file.

    >>> rank_state_path("here.state", World(rank=1, size=2)).name
    'here.state.1'
    """
    path = Path(path)
    return path.with_name(f"{path.name}.{world.rank}") if world.size > 1 else path


class StateFile:
    """Saves an evaluation's state to a file from time to time, so that it can be resumed.

    Args:
        path: the state file; if it exists, the state is loaded from it.
        evaluation_key: text that identifies the evaluation, such as its settings as JSON; it must
            equal the key stored in an existing file.
        seconds: the minimum time in seconds between two saves; 0 saves at every call of ``save``.

    Raises:
        ValueError: the file is damaged or belongs to another evaluation.
    """

    def __init__(
        self, path: str | Path, evaluation_key: str, seconds: float = SECONDS_BETWEEN_SAVES
    ) -> None:
        self.path, self.evaluation_key, self.seconds = Path(path), evaluation_key, seconds
        # The states of the evaluation's sweeps, by the names given to `save`.
        self._states: dict[str, State] = {}
        self._next_save = time.monotonic() + seconds
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
            # `save` stores the evaluation key in an array called "what".
            stored_key = str(arrays.pop("what"))
        except _UNREADABLE as error:
            raise ValueError(
                f"{self.path} is not a saved evaluation state, or is damaged; delete it to start "
                "over, or choose another file"
            ) from error
        if stored_key != self.evaluation_key:
            raise ValueError(
                f"{self.path} is the state of another evaluation, or of a run with a different "
                "number of processes (--devices); delete it, or choose another file"
            )
        # `save` calls the other arrays "name/part", where name is its argument, or "name/part/key"
        # if the part is a dict, such as a collector's state.
        for array_name, array in arrays.items():
            state_name, part, *keys = array_name.split("/")
            state = self._states.setdefault(state_name, {})
            if keys:
                state.setdefault(part, {})[keys[0]] = array
            else:
                state[part] = array

    def load(self, name: str) -> State | None:
        """The state saved under a name, or None if there is none."""
        return self._states.get(name)

    def save(self, name: str, snapshot: Callable[[], State]) -> None:
        """Save `snapshot()` under a name, unless it is too soon after the last save."""
        started = time.monotonic()
        if started < self._next_save:
            return
        self._states[name] = snapshot()
        arrays: dict[str, Any] = {"what": np.array(self.evaluation_key)}
        for state_name, state in self._states.items():
            for part, value in state.items():
                if isinstance(value, dict):
                    arrays |= {f"{state_name}/{part}/{key}": array for key, array in value.items()}
                else:
                    arrays[f"{state_name}/{part}"] = np.array(value)
        with atomic_write(self.path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
        ended = time.monotonic()
        if self.seconds:
            self._next_save = ended + max(self.seconds, (ended - started) / MAX_SAVING_SHARE)
