"""Detects and names a failed or hanging rank while the other ranks wait in a collective.

A thread of every rank writes a status line into the process group's store every few seconds. The
line changes as long as the process runs, even if its main thread hangs. If a rank's line stops
changing, its process was stopped or its machine is gone. If a rank's main thread hangs, its line
says where, while the lines of the other ranks say that they are waiting in a collective.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import FrameType, TracebackType

import torch.distributed as dist

from margrave.distributed.launch import (
    Launch,
    RankError,
    as_rank_error,
    current_launch,
    record_failure,
)
from margrave.distributed.world import World, current_world

SILENT_SECONDS = 60.0
"""Default time after which a rank whose status line does not change counts as failed."""
MAX_INTERVAL = 5.0
"""Maximum number of seconds between two status lines of a rank."""
COLLECTIVE_TIMEOUT = timedelta(days=30)
"""Timeout of collectives outside training, where ranks may finish their work days apart."""
WAITING_PATHS = (
    "margrave/distributed/",
    "margrave/training/transfer.py",
    "torch/autograd/graph.py",
    "torch/cuda/streams.py",
    "torch/distributed/",
)
"""Source paths of the code in which a rank waits for other ranks, or for its own device, which may
itself be waiting in a collective."""

_watch_numbers = count()


@dataclass(frozen=True)
class RankStatus:
    """A rank's latest status line.

    Attributes:
        pid: process id.
        host: host name.
        beat: number of lines written so far, including this one.
        step: current training step; 0 before the first step.
        place: code location of the main thread.
        waiting: whether the main thread is waiting for other ranks or for its device.
        done: whether the rank has closed its watch; its silence is then no failure.
    """

    pid: int
    host: str
    beat: int = 0
    step: int = 0
    place: str = ""
    waiting: bool = False
    done: bool = False


class RankWatch:
    """A context manager that ends this process with an error if another rank fails or hangs.

    Every rank enters the context, and leaves it once it no longer waits for other ranks. When
    another rank fails, this process ends at once, because a main thread inside a collective cannot
    be interrupted. The error names the failed rank. It is recorded for the launcher, or printed if
    there is no launcher. A world of one process is not watched.

    Args:
        world: the ranks.
        silent_seconds: time after which a rank whose status line does not change counts as failed.
        stalled_seconds: time after which a rank that keeps the others waiting counts as hanging,
            although its status line changes; None means never.
        setting: template for the names of the settings that set these two limits, for messages:
            ``{}`` stands for ``silence`` or ``stall``, as in ``training.rank_{}_seconds``. None if
            there are no such settings.

    Attributes:
        step: the current training step, set by the training loop.
    """

    def __init__(
        self,
        world: World,
        silent_seconds: float = SILENT_SECONDS,
        stalled_seconds: float | None = None,
        setting: str | None = None,
    ) -> None:
        self.step = 0
        self._world, self._setting = world, setting
        self._silence_limit, self._stall_limit = silent_seconds, stalled_seconds
        self._interval = min(MAX_INTERVAL, silent_seconds / 6)
        self._status = RankStatus(os.getpid(), socket.gethostname())
        # Each rank's status and the time of its last change. Two threads read this mapping, so it
        # is replaced rather than modified.
        self._statuses: dict[int, tuple[RankStatus, float]] = {}
        self._waiting_since: float | None = None
        self._waiting_step = 0
        self._closed = threading.Event()

    def __enter__(self) -> RankWatch:
        if self._world.size == 1:
            return self
        self._main_thread = threading.get_ident()
        # `_awake_since` is the start or, if the job has been suspended, the end of the suspension.
        self._awake_since = self._last_contact = self._last_check = time.monotonic()
        self._store, self._store_host = _open_connection(self._silence_limit)
        # Every rank opens the same watches in the same order, so all ranks use the same prefix.
        self._prefix = (
            f"margrave/watch {next(_watch_numbers)}/{os.environ.get('TORCHELASTIC_RUN_ID')}/"
        )
        self._prefix += f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/"
        self._write_status()
        self._threads = [
            threading.Thread(target=self._repeat, args=(task,), daemon=True)
            for task in (self._exchange_status, self._check_ranks)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._world.size == 1:
            return
        self._closed.set()
        for thread in self._threads:
            thread.join(self._interval)
        failure = None
        if isinstance(error, RuntimeError) and as_rank_error(error) is not None:
            # Probably another rank detected the failure first and ended, which closed its
            # connections. The failed rank has then nearly reached its limit, so half of the limit
            # is enough to name it.
            failure = self._find_failure(time.monotonic(), fraction=0.5)
        # If the store is gone, a thread is still waiting for it, and this write would wait too.
        if not any(thread.is_alive() for thread in self._threads):
            with suppress(RuntimeError):
                self._write_status(done=True)
        if failure is not None:
            raise RankError(failure) from error

    def _repeat(self, task: Callable[[], None]) -> None:
        while not self._closed.wait(self._interval):
            task()

    def _write_status(self, done: bool = False) -> None:
        frame = sys._current_frames().get(self._main_thread)
        previous = self._status
        self._status = RankStatus(
            pid=previous.pid,
            host=previous.host,
            beat=previous.beat + 1,
            step=self.step,
            place=_code_location(frame),
            waiting=_is_waiting(frame),
            done=done,
        )
        self._store.set(f"{self._prefix}{self._world.rank}", json.dumps(asdict(self._status)))

    def _exchange_status(self) -> None:
        """Write this rank's status line and read all lines; may block if the store is gone."""
        # If the store does not answer, the error is ignored, because the next call retries. If
        # it never answers again, `_last_contact` grows old, which `_check_ranks` detects.
        with suppress(RuntimeError):
            self._write_status()
            keys = {rank: f"{self._prefix}{rank}" for rank in range(self._world.size)}
            # Reading the line of a rank that has not written one yet would block.
            started = [
                rank for rank in keys if rank in self._statuses or self._store.check([keys[rank]])
            ]
            lines = self._store.multi_get([keys[rank] for rank in started])
            now = time.monotonic()
            statuses = dict(self._statuses)
            for rank, line in zip(started, lines, strict=True):
                status = RankStatus(**json.loads(line))
                if rank not in statuses or status != statuses[rank][0]:
                    statuses[rank] = status, now
            self._statuses = statuses
            self._last_contact = now

    def _check_ranks(self) -> None:
        """End this process with an error if a rank has failed or hangs."""
        now = time.monotonic()
        # If this check is long overdue, the whole job was suspended (Ctrl-Z, a sleeping machine).
        # All ranks then get their full time again.
        if now - self._last_check > self._silence_limit / 2:
            self._awake_since, self._waiting_since = now, None
        self._last_check = now
        if not _is_waiting(sys._current_frames().get(self._main_thread)):
            self._waiting_since = None
        elif self._waiting_since is None or self._waiting_step != self.step:
            self._waiting_since, self._waiting_step = now, self.step
        failure = self._find_failure(now)
        if failure is not None and not self._closed.is_set():
            _exit_with_error(failure)

    def _find_failure(self, now: float, fraction: float = 1.0) -> str | None:
        """Describe a failed or hanging rank or a lost store; return None if there is none.

        Args:
            now: the current monotonic time.
            fraction: fraction of each limit that must be exceeded, for ranks and for the store.
        """
        statuses = self._statuses
        lost_for = now - max(self._last_contact, self._awake_since)
        # Rank 0 may host the store. If rank 0 is done, a missing store is therefore no failure.
        if lost_for > self._silence_limit * fraction and not (
            0 in statuses and statuses[0][0].done
        ):
            return (
                f"{self._store_owner()}, which hosts the store that connects the processes, has "
                f"not answered for {lost_for:.0f} s; "
                f"{self._describe_limit('silence', self._silence_limit)}"
            )
        for rank, (status, changed_at) in statuses.items():
            silent_for = self._last_contact - max(changed_at, self._awake_since)
            if (
                rank != self._world.rank
                and not status.done
                and silent_for > self._silence_limit * fraction
            ):
                return (
                    f"{self._rank_name(rank)} has not answered for {silent_for:.0f} s, last seen "
                    f"in step {status.step}, {status.place}: it was stopped, or its machine is "
                    f"gone; the other processes were ended; "
                    f"{self._describe_limit('silence', self._silence_limit)}"
                )
        since, limit = self._waiting_since, self._stall_limit
        if since is None or limit is None or now - since <= limit * fraction:
            return None
        return f"{self._describe_stall(now - since)}; {self._describe_limit('stall', limit)}"

    def _describe_stall(self, seconds: float) -> str:
        """Describe the ranks that the others wait for.

        These are the ranks that are not waiting or, if all are waiting, those that have not reached
        the latest step. If all are waiting in the same step, all are described.
        """
        statuses = {rank: status for rank, (status, _) in self._statuses.items()}
        running = {rank: status for rank, status in statuses.items() if not status.done}
        latest_step = max((status.step for status in running.values()), default=0)
        hanging = [rank for rank, status in running.items() if not status.waiting]
        hanging = hanging or [rank for rank, status in running.items() if status.step < latest_step]
        places = "; ".join(
            f"{self._rank_name(rank)} is in step {running[rank].step}, {running[rank].place}"
            for rank in sorted(hanging or running)
        )
        if hanging:
            return f"processes have waited {seconds:.0f} s for others: {places}"
        return f"all processes have waited for each other for {seconds:.0f} s: {places}"

    def _rank_name(self, rank: int) -> str:
        status, _ = self._statuses[rank]
        name = Launch(rank, self._world.size).name
        return f"{name} (rank {rank}, pid {status.pid} on {status.host})"

    def _store_owner(self) -> str:
        # torchrun and Margrave's launcher host the store; without them, the first rank does.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return f"the launcher on {self._store_host}"
        if 0 in self._statuses:
            return self._rank_name(0)
        return f"the first process, on {self._store_host}"

    def _describe_limit(self, kind: str, seconds: float) -> str:
        if self._setting is None:
            return f"the limit is {seconds:g} s"
        return f"the limit is {self._setting.format(kind)} = {seconds:g}"


@contextmanager
def joined_world() -> Iterator[World]:
    """Yield the world of the launcher's processes, watched by `RankWatch`.

    Without a launcher it is a world of one process, which is not watched.

    >>> with joined_world() as world:
    ...     world.size
    1
    """
    if current_launch().size == 1:
        yield World()
        return
    dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        with RankWatch(current_world()):
            yield current_world()
    finally:
        dist.destroy_process_group()


def _open_connection(timeout_seconds: float) -> tuple[dist.Store, str]:
    """Open a separate connection to the process group's store, so that no thread blocks another.

    Returns:
        the connection, or the store itself if it is not a `TCPStore`; and the store's host.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if not isinstance(store, dist.TCPStore):
        return store, "this machine"
    connection = dist.TCPStore(
        store.host,
        store.port,
        is_master=False,
        timeout=timedelta(seconds=max(1.0, timeout_seconds)),
        wait_for_workers=False,
    )
    return connection, store.host


def _is_waiting(frame: FrameType | None) -> bool:
    return frame is not None and any(
        path in Path(frame.f_code.co_filename).as_posix() for path in WAITING_PATHS
    )


def _code_location(frame: FrameType | None) -> str:
    """A thread's code location, such as ``training/loop.py:120 in _fit``."""
    if frame is None:
        return "ended"
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}"


def _exit_with_error(message: str) -> None:
    """End this process with an error, although its main thread cannot be interrupted."""
    launcher_reports = False
    try:
        launcher_reports = record_failure(RankError(message))
    finally:
        if not launcher_reports:
            os.write(2, f"\nerror: {message}\n".encode())
        if sys.stdout is not None and sys.stdout.isatty():
            # Show the cursor again, in case a progress bar has hidden it.
            os.write(1, b"\x1b[?25h")
        os._exit(1)
