"""One writer for a run's folder, and an end that loses nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from margrave.distributed import has_launcher

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
SECONDS_OF_GRACE = 15
"""What a rank that its launcher stops has left to finish a step; then it would be killed."""

_held: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a run's folder; the lock ends with the process.

    Within it, the same process may ask again. Where the system has no such locks there are none.

    Raises:
        ValueError: another process has the folder, naming it and its machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if fcntl is None or path in _held:
        yield
        return
    with open(path, "a+") as file:
        _take(file, folder)
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
            # Not removed: another process may have opened it already.
            file.truncate(0)


def _take(file: IO[str], folder: Path) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        try:
            owner = json.loads(file.read())
            who = f"process {owner['pid']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        raise ValueError(
            f"{folder} is being trained by {who}; wait until it ends, stop it, or choose another "
            "--output"
        ) from error
    file.seek(0)
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()


class StopRequested(KeyboardInterrupt):
    """Training was asked to stop, finished its step and wrote a checkpoint."""


class StopSignals:
    """Ctrl-C and SIGTERM as a request that the loop grants after the step under way.

    A second Ctrl-C stops at once. Outside of the main thread signals stay as they are.

    Attributes:
        requested: whether one came.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        if has_launcher():
            # Where another rank has died the step never ends.
            self._timer = threading.Timer(SECONDS_OF_GRACE, os._exit, (128 + number,))
            self._timer.daemon = True
            self._timer.start()
        elif sys.stderr.isatty():
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
