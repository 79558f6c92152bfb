"""Locks a run's folder for one writer, and stops training on a signal without losing work."""

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

LOCK_FILE = ".lock"
GRACE_SECONDS = 15
"""Time for a rank to finish its step after the launcher asks it to stop. A rank that needs longer
exits by itself, before the launcher would kill it."""

_locked_paths: set[Path] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make this process the only one that writes into a run's folder.

    The lock ends with the ``with`` block or with the process. A process that holds the lock may
    lock the folder again. Without file locks (on Windows), the folder is not protected.

    Raises:
        ValueError: another process holds the lock; the message names the process and its machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK_FILE
    if fcntl is None or path in _locked_paths:
        yield
        return
    with open(path, "a+") as file:
        _acquire(file, folder)
        _locked_paths.add(path)
        try:
            yield
        finally:
            _locked_paths.discard(path)
            # The file is not deleted. Otherwise one process could lock the deleted file, which it
            # has opened already, and another process a new file.
            file.truncate(0)


def _acquire(file: IO[str], folder: Path) -> None:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        try:
            owner = json.loads(file.read())
            holder = f"process {owner['pid']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            holder = "another process"
        raise ValueError(
            f"{folder} is in use by {holder}, which is training there; wait until it ends, stop "
            "it, or choose another --output"
        ) from error
    file.seek(0)
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    file.flush()


class StopRequested(KeyboardInterrupt):
    """Training stopped on request, after finishing its step and writing a checkpoint."""


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a request to stop after the current step.

    A second Ctrl-C stops at once. Outside the main thread, signal handlers stay unchanged.

    Attributes:
        requested: whether a signal has arrived.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous_handlers: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.signal(signal_number, self._on_signal)
                self._previous_handlers[signal_number] = previous
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signal_number, handler in self._previous_handlers.items():
            signal.signal(signal_number, handler)
        if self._timer is not None:
            self._timer.cancel()

    def _on_signal(self, signal_number: int, frame: FrameType | None) -> None:
        if self.requested:
            if signal_number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.requested = True
        if has_launcher():
            # If another rank has died, this step never ends, and the timer ends the process.
            self._timer = threading.Timer(GRACE_SECONDS, os._exit, (128 + signal_number,))
            self._timer.daemon = True
            self._timer.start()
        elif sys.stderr.isatty():
            os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
