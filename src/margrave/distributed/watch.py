"""Noticing that a rank no longer takes part, and naming it, while the others wait in a collective.

Every rank writes a line about itself into the process group's store every few seconds, from a
thread: as long as the process runs the line changes, whatever its main thread does. If the line of
a rank stands still, it has been stopped, or its machine is gone. A rank whose main thread hangs
says where that thread is; the others are then waiting in a collective.
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
    current_launch,
    lost_touch,
    record_failure,
)
from margrave.distributed.world import World, current_world

SILENT_SECONDS = 60.0
"""After which a rank that does not answer is named, unless a setting says otherwise."""
LONGEST_INTERVAL = 5.0
"""Seconds between two lines of a rank."""
LONGEST_WAIT = timedelta(days=30)
"""For the slowest of the processes that share something out, which may take days."""
WAITING = (
    "margrave/distributed/",
    "margrave/training/transfer.py",
    "torch/autograd/graph.py",
    "torch/cuda/streams.py",
    "torch/distributed/",
)
"""Code in which a rank waits for the others, or for its own device."""

_watches = count()


@dataclass(frozen=True)
class RankStatus:
    """What a rank last wrote about itself.

    Attributes:
        pid: its process.
        host: its machine.
        beat: how many lines it has written.
        step: where training stands, 0 before the first step.
        place: where its main thread is.
        waiting: whether it waits there for other ranks.
        done: whether it takes part no longer, by intention.
    """

    pid: int
    host: str
    beat: int = 0
    step: int = 0
    place: str = ""
    waiting: bool = False
    done: bool = False


class RankWatch:
    """While it is open, a rank that no longer takes part ends the others with an error naming it.

    Every rank opens it, and closes it when it waits for no other any more. The process ends at
    once, because its main thread cannot be reached within a collective; the error is left for the
    launcher, or printed where there is none. A world of one is not watched.

    Args:
        world: the ranks.
        silent_seconds: after which a rank that does not answer is named.
        stalled_seconds: after which a rank is named that keeps the others waiting although it
            answers; None for never.
        setting: what messages call the settings: ``training.rank_{}_seconds``.

    Attributes:
        step: to be set as training proceeds.
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
        self._silent, self._stalled = silent_seconds, stalled_seconds
        self._interval = min(LONGEST_INTERVAL, silent_seconds / 6)
        self._own = RankStatus(os.getpid(), socket.gethostname())
        # Replaced as a whole, because two threads use it: each rank's line, and when it changed.
        self._seen: dict[int, tuple[RankStatus, float]] = {}
        self._waiting_since: float | None = None
        self._waiting_step = 0
        self._closed = threading.Event()

    def __enter__(self) -> RankWatch:
        if self._world.size == 1:
            return self
        self._thread = threading.get_ident()
        self._awake_since = self._contact = self._looked = time.monotonic()
        self._store, self._store_host = _own_connection(self._silent)
        # Ranks open as many watches, so they number them alike.
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
        if isinstance(error, RuntimeError) and lost_touch(error) is not None:
            # Another that named the rank has ended first, which closed its connections.
            blamed = self._blamed(time.monotonic(), share=0.5)
        # Where the store is gone, a thread still waits for its answer.
        if not any(thread.is_alive() for thread in self._threads):
            with suppress(RuntimeError):
                self._write(done=True)
        if blamed is not None:
            raise RankError(blamed) from error

    def _repeat(self, task: Callable[[], None]) -> None:
        while not self._closed.wait(self._interval):
            task()

    def _write(self, done: bool = False) -> None:
        frame = sys._current_frames().get(self._thread)
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
        """Write this rank's line and read the others'. May block where the store is gone."""
        # What fails is tried again; what fails for long, `_watch` sees by the last contact.
        with suppress(RuntimeError):
            self._write()
            names = {rank: f"{self._prefix}{rank}" for rank in range(self._world.size)}
            known = [
                rank for rank in names if rank in self._seen or self._store.check([names[rank]])
            ]
            values = self._store.multi_get([names[rank] for rank in known])
            now = time.monotonic()
            seen = dict(self._seen)
            for rank, value in zip(known, values, strict=True):
                status = RankStatus(**json.loads(value))
                if rank not in seen or status != seen[rank][0]:
                    seen[rank] = status, now
            self._seen = seen
            self._contact = now

    def _watch(self) -> None:
        now = time.monotonic()
        # A whole job that was stopped and goes on (Ctrl-Z, a machine asleep) is no rank's fault.
        if now - self._looked > self._silent / 2:
            self._awake_since, self._waiting_since = now, None
        self._looked = now
        if not _is_waiting(sys._current_frames().get(self._thread)):
            self._waiting_since = None
        elif self._waiting_since is None or self._waiting_step != self.step:
            self._waiting_since, self._waiting_step = now, self.step
        blamed = self._blamed(now)
        if blamed is not None and not self._closed.is_set():
            _end(blamed)

    def _blamed(self, now: float, share: float = 1.0) -> str | None:
        """Who keeps this rank from going on, in words, once a share of the time has passed."""
        seen = self._seen
        lost = now - max(self._contact, self._awake_since)
        if lost > self._silent * share and not (0 in seen and seen[0][0].done):
            return (
                f"{self._store_keeper()}, which keeps the store by which processes find each "
                f"other, has not answered for {lost:.0f} s; {self._hint('silence', self._silent)}"
            )
        for rank, (status, changed) in seen.items():
            silent = self._contact - max(changed, self._awake_since)
            if rank != self._world.rank and not status.done and silent > self._silent * share:
                return (
                    f"{self._name(rank)} has not answered for {silent:.0f} s, last seen in step "
                    f"{status.step}, {status.place}: it was stopped, or its machine is gone; "
                    f"the others were ended; {self._hint('silence', self._silent)}"
                )
        since, limit = self._waiting_since, self._stalled
        if since is None or limit is None or now - since <= limit * share:
            return None
        return f"{self._stall(now - since)}; {self._hint('stall', limit)}"

    def _stall(self, seconds: float) -> str:
        running = {rank: each for rank, (each, _) in self._seen.items() if not each.done}
        furthest = max((each.step for each in running.values()), default=0)
        guilty = [rank for rank, each in running.items() if not each.waiting]
        guilty = guilty or [rank for rank, each in running.items() if each.step < furthest]
        places = "; ".join(
            f"{self._name(rank)} is in step {running[rank].step}, {running[rank].place}"
            for rank in sorted(guilty or running)
        )
        if guilty:
            return f"processes have waited {seconds:.0f} s for others: {places}"
        return f"all processes have waited for each other for {seconds:.0f} s: {places}"

    def _name(self, rank: int) -> str:
        status, _ = self._seen[rank]
        name = Launch(rank, self._world.size).name
        return f"{name} (rank {rank}, pid {status.pid} on {status.host})"

    def _store_keeper(self) -> str:
        # Torchrun and our launcher keep it in the launcher, others in the first rank.
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return f"the launcher on {self._store_host}"
        return self._name(0) if 0 in self._seen else f"the first process, on {self._store_host}"

    def _hint(self, kind: str, seconds: float) -> str:
        if self._setting is None:
            return f"the limit is {seconds:g} s"
        return f"the limit is {self._setting.format(kind)} = {seconds:g}"


@contextmanager
def joined_world() -> Iterator[World]:
    """The world of the processes that a launcher started, or of this one where none did; watched.

    >>> with joined_world() as world:
    ...     world.size
    1
    """
    if current_launch().size == 1:
        yield World()
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        with RankWatch(current_world()):
            yield current_world()
    finally:
        dist.destroy_process_group()


def _own_connection(seconds: float) -> tuple[dist.Store, str]:
    """The process group's store, by a connection of which no other thread waits for an answer."""
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
        part in Path(frame.f_code.co_filename).as_posix() for part in WAITING
    )


def _place(frame: FrameType | None) -> str:
    """Where a thread is: ``training/loop.py:120 in _fit``."""
    if frame is None:
        return "ended"
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} in {frame.f_code.co_name}"


def _end(message: str) -> None:
    """End this process, whose main thread cannot be reached, with an error."""
    told_by_launcher = False
    try:
        told_by_launcher = record_failure(RankError(message))
    finally:
        if not told_by_launcher:
            os.write(2, f"\nerror: {message}\n".encode())
        if sys.stdout is not None and sys.stdout.isatty():
            # A progress bar has hidden the cursor.
            os.write(1, b"\x1b[?25h")
        os._exit(1)
