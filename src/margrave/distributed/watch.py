"""Detects and names a failed or hanging rank while the other ranks wait in a collective.

A thread of every rank writes a status line into the process group's store every few seconds. The
line changes as long as the process runs, even if its main thread hangs. If a rank's line stops
changing, its process was stopped or its machine is gone. If a rank's main thread hangs, its line
tells where, while the other ranks' lines tell that they are waiting in a collective.
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
"""Default time after which a rank that does not answer is reported."""
MAX_INTERVAL = 5.0
"""Maximum number of seconds between two status lines of a rank."""
COLLECTIVE_TIMEOUT = timedelta(days=30)
"""Timeout of collectives outside training, where ranks may finish their shares days apart."""
WAITING_PATHS = (
    "margrave/distributed/",
    "margrave/training/transfer.py",
    "torch/autograd/graph.py",
    "torch/cuda/streams.py",
    "torch/distributed/",
)
"""Paths of code in which a rank waits for other ranks or for its own device."""

_watches = count()


@dataclass(frozen=True)
class RankStatus:
    """A rank's latest status line.

    Attributes:
        pid: process id.
        host: host name.
        beat: number of lines written so far.
        step: current training step; 0 before the first step.
        place: code location of the main thread.
        waiting: whether the main thread is waiting for other ranks or for its device.
        done: whether the rank has closed its watch, so that its silence is no failure.
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

    Every rank opens it, and closes it once it no longer waits for other ranks. On failure the
    process ends at once, because a main thread inside a collective cannot be interrupted. The error
    names the failed rank; it is recorded for the launcher, or printed if there is none. A world of
    one process is not watched.

    Args:
        world: the ranks.
        silent_seconds: time after which a rank that does not answer counts as failed.
        stalled_seconds: time after which a rank that answers but keeps the others waiting counts as
            hanging; None means never.
        setting: the settings' name in messages, such as ``training.rank_{}_seconds``, in which
            ``{}`` stands for ``silence`` or ``stall``.

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
        self._own = RankStatus(os.getpid(), socket.gethostname())
        # Each rank's line and the time of its last change. Two threads read it, so it is replaced
        # rather than modified.
        self._statuses: dict[int, tuple[RankStatus, float]] = {}
        self._waiting_since: float | None = None
        self._waiting_step = 0
        self._closed = threading.Event()

    def __enter__(self) -> RankWatch:
        if self._world.size == 1:
            return self
        self._main_thread = threading.get_ident()
        self._awake_since = self._last_contact = self._last_check = time.monotonic()
        self._store, self._store_host = _own_connection(self._silence_limit)
        # Every rank opens the same number of watches, so the numbers agree.
        self._prefix = f"margrave/watch {next(_watches)}/{os.environ.get('TORCHELASTIC_RUN_ID')}/"
        self._prefix += f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/"
        self._write()
        self._threads = [
            threading.Thread(target=self._repeat, args=(task,), daemon=True)
            for task in (self._exchange, self._watch)
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
        blamed = None
        if isinstance(error, RuntimeError) and as_rank_error(error) is not None:
            # Probably another rank detected the failure first and ended, which closed its
            # connections. Half of the limits is then enough to name the failed rank.
            blamed = self._blamed(time.monotonic(), share=0.5)
        # If the store is gone, a thread still waits for its answer, as this write would.
        if not any(thread.is_alive() for thread in self._threads):
            with suppress(RuntimeError):
                self._write(done=True)
        if blamed is not None:
            raise RankError(blamed) from error

    def _repeat(self, task: Callable[[], None]) -> None:
        while not self._closed.wait(self._interval):
            task()

    def _write(self, done: bool = False) -> None:
        frame = sys._current_frames().get(self._main_thread)
        own = self._own
        self._own = RankStatus(
            pid=own.pid,
            host=own.host,
            beat=own.beat + 1,
            step=self.step,
            place=_place(frame),
            waiting=_is_waiting(frame),
            done=done,
        )
        self._store.set(f"{self._prefix}{self._world.rank}", json.dumps(asdict(self._own)))

    def _exchange(self) -> None:
        """Write this rank's line and read the others'. It may block if the store is gone."""
        # Failures are retried; `_watch` notices a long failure by the time of the last contact.
        with suppress(RuntimeError):
            self._write()
            names = {rank: f"{self._prefix}{rank}" for rank in range(self._world.size)}
            known = [
                rank for rank in names if rank in self._statuses or self._store.check([names[rank]])
            ]
            values = self._store.multi_get([names[rank] for rank in known])
            now = time.monotonic()
            statuses = dict(self._statuses)
            for rank, value in zip(known, values, strict=True):
                status = RankStatus(**json.loads(value))
                if rank not in statuses or status != statuses[rank][0]:
                    statuses[rank] = status, now
            self._statuses = statuses
            self._last_contact = now

    def _watch(self) -> None:
        now = time.monotonic()
        # After a long gap, the whole job was suspended (Ctrl-Z, a sleeping machine): start counting
        # again.
        if now - self._last_check > self._silence_limit / 2:
            self._awake_since, self._waiting_since = now, None
        self._last_check = now
        if not _is_waiting(sys._current_frames().get(self._main_thread)):
            self._waiting_since = None
        elif self._waiting_since is None or self._waiting_step != self.step:
            self._waiting_since, self._waiting_step = now, self.step
        blamed = self._blamed(now)
        if blamed is not None and not self._closed.is_set():
            _end(blamed)

    def _blamed(self, now: float, share: float = 1.0) -> str | None:
        """The error message for a failed or hanging rank; None until `share` of a limit is over."""
        statuses = self._statuses
        lost_for = now - max(self._last_contact, self._awake_since)
        if lost_for > self._silence_limit * share and not (0 in statuses and statuses[0][0].done):
            return (
                f"{self._store_owner()}, which hosts the store that connects the processes, has "
                f"not answered for {lost_for:.0f} s; {self._hint('silence', self._silence_limit)}"
            )
        for rank, (status, changed) in statuses.items():
            silent_for = self._last_contact - max(changed, self._awake_since)
            if (
                rank != self._world.rank
                and not status.done
                and silent_for > self._silence_limit * share
            ):
                return (
                    f"{self._name(rank)} has not answered for {silent_for:.0f} s, last seen in "
                    f"step {status.step}, {status.place}: it was stopped, or its machine is gone; "
                    f"the other processes were ended; "
                    f"{self._hint('silence', self._silence_limit)}"
                )
        since, limit = self._waiting_since, self._stall_limit
        if since is None or limit is None or now - since <= limit * share:
            return None
        return f"{self._stall(now - since)}; {self._hint('stall', limit)}"

    def _stall(self, seconds: float) -> str:
        """Name the ranks that the others wait for: not waiting themselves, or some steps behind."""
        running = {rank: each for rank, (each, _) in self._statuses.items() if not each.done}
        furthest = max((each.step for each in running.values()), default=0)
        hanging = [rank for rank, each in running.items() if not each.waiting]
        hanging = hanging or [rank for rank, each in running.items() if each.step < furthest]
        places = "; ".join(
            f"{self._name(rank)} is in step {running[rank].step}, {running[rank].place}"
            for rank in sorted(hanging or running)
        )
        if hanging:
            return f"processes have waited {seconds:.0f} s for others: {places}"
        return f"all processes have waited for each other for {seconds:.0f} s: {places}"

    def _name(self, rank: int) -> str:
        status, _ = self._statuses[rank]
        name = Launch(rank, self._world.size).name
        return f"{name} (rank {rank}, pid {status.pid} on {status.host})"

    def _store_owner(self) -> str:
        # torchrun and our launcher host the store themselves; else the first rank does.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return f"the launcher on {self._store_host}"
        return self._name(0) if 0 in self._statuses else f"the first process, on {self._store_host}"

    def _hint(self, kind: str, seconds: float) -> str:
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


def _own_connection(seconds: float) -> tuple[dist.Store, str]:
    """A connection to the process group's store that other threads do not block, and its host."""
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if not isinstance(store, dist.TCPStore):
        return store, "this machine"
    own = dist.TCPStore(
        store.host,
        store.port,
        is_master=False,
        timeout=timedelta(seconds=max(1.0, seconds)),
        wait_for_workers=False,
    )
    return own, store.host


def _is_waiting(frame: FrameType | None) -> bool:
    return frame is not None and any(
        part in Path(frame.f_code.co_filename).as_posix() for part in WAITING_PATHS
    )


def _place(frame: FrameType | None) -> str:
    """A thread's code location, such as ``training/loop.py:120 in _fit``."""
    if frame is None:
        return "ended"
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}"


def _end(message: str) -> None:
    """End this process with an error, although its main thread cannot be interrupted."""
    has_launcher = False
    try:
        has_launcher = record_failure(RankError(message))
    finally:
        if not has_launcher:
            os.write(2, f"\nerror: {message}\n".encode())
        if sys.stdout is not None and sys.stdout.isatty():
            # Show the cursor again, which a progress bar has hidden.
            os.write(1, b"\x1b[?25h")
        os._exit(1)
