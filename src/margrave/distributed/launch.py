"""Starts several processes on this machine, and reads the rank that a launcher gave a process."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from margrave.hardware import core_share

LAUNCHED_BY_MARGRAVE = "MARGRAVE_LAUNCHED"
"""Environment variable that is set in the processes that `launch` starts."""
SHUTDOWN_SECONDS = 20
"""Time for the other processes to end after one has failed; after that, they are killed."""
ORPHAN_SECONDS = 7
"""Time for a process to end after its parent process has ended; after that, it exits at once."""


class RankError(RuntimeError):
    """One of the training processes has failed, and the others were stopped."""


class LostContactError(RankError):
    """Communication with another process has failed, nearly always because that process ended."""


@dataclass(frozen=True)
class Launch:
    """The rank and the number of processes, as set by the launcher (Margrave's or torchrun).

    Attributes:
        rank: this process's rank over all machines.
        size: number of processes on all machines.
        local_size: number of processes on this machine.
        local_rank: this process's rank on this machine.

    >>> Launch().size
    1
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    local_rank: int = 0

    @property
    def name(self) -> str:
        """The name in messages, counted from 1: ``process 2 of 4``."""
        return f"process {self.rank + 1} of {self.size}"


def current_launch() -> Launch:
    """Read the launch from the environment variables; without a launcher, there is one process."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    return Launch(
        rank=int(os.environ.get("RANK", 0)),
        size=size,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def launch(processes: int, command: Sequence[str]) -> None:
    """Run a command in several connected processes on this machine, and wait until they end.

    Args:
        processes: number of processes.
        command: program and arguments, the same for each process.

    Raises:
        RankError: a process failed, and the others have been stopped.
        KeyboardInterrupt: a signal was received, and all processes have been stopped.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Silence torch's launcher: errors are reported here, more briefly.
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(core_share(processes)))
    os.environ[LAUNCHED_BY_MARGRAVE] = "1"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise RankError(_root_cause(error, processes)) from error
    finally:
        del os.environ[LAUNCHED_BY_MARGRAVE]


def _root_cause(error: object, processes: int) -> str:
    """The error message of the failure that caused the others."""
    failures: dict[int, object] = getattr(error, "failures", {})  # by rank

    def name_and_code(rank: int) -> tuple[str, int]:
        return Launch(rank, processes).name, getattr(failures[rank], "exitcode", 1)

    # The exit status of a process that the launcher stopped.
    launcher_stop_code = -signal.SIGTERM
    recorded = {
        # `record_failure` stores the error's class and its text, separated by a colon.
        rank: str(message["message"]).partition(": ")
        for rank in sorted(failures)
        if isinstance(message := getattr(failures[rank], "message", ""), dict)
    }
    times = {rank: float(getattr(failures[rank], "timestamp", 0)) for rank in failures}
    # A process killed from outside is the most likely cause: the others then lost contact with it.
    # The launcher itself kills processes that are still running SHUTDOWN_SECONDS after the first
    # failure. A kill later than half of that time is therefore attributed to the launcher.
    latest_outside_kill = min(times.values(), default=0.0) + SHUTDOWN_SECONDS / 2
    for rank in sorted(failures):
        name, code = name_and_code(rank)
        is_killed = code < 0 and code != launcher_stop_code
        if is_killed and times[rank] <= latest_outside_kill and rank not in recorded:
            # Real-time signals have numbers, but mostly no names.
            names = {number.value: number.name for number in signal.Signals}
            message = f"{name} was killed ({names.get(-code, f'signal {-code}')})"
            if code == -signal.SIGKILL:
                message += ", perhaps because memory ran out"
            return f"{message}; the others were stopped"
    # Lost contact is a consequence of another process's failure, so other errors come first.
    causes = [
        (error_class == LostContactError.__name__, rank, text)
        for rank, (error_class, _, text) in recorded.items()
        if name_and_code(rank)[1] != launcher_stop_code
    ]
    if causes:
        return min(causes)[2]
    return "; ".join("{} ended with status {}".format(*name_and_code(rank)) for rank in failures)


def record_failure(error: BaseException) -> bool:
    """Record an error for the launcher to report; return whether Margrave's launcher reports it."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(error)
    return has_launcher()


def has_launcher() -> bool:
    """Whether Margrave's launcher started this process and reports errors for all processes."""
    return LAUNCHED_BY_MARGRAVE in os.environ


def end_with_launcher() -> None:
    """Make this process end soon after Margrave's launcher, if any, ends for any reason.

    Every rank must call this function.
    """
    if has_launcher():
        end_with_parent()


def end_with_parent() -> None:
    """Make this process end soon after its parent process ends for any reason."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        # SIGTERM first, as cluster schedulers do, so that a step can finish and be saved.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def as_rank_error(error: RuntimeError) -> RankError | None:
    """Convert a communication error to a `LostContactError`; return None for any other error."""
    text = str(error)
    markers = ("gloo", "pair.cc", "Connection", "NCCL", "ProcessGroup", "Timed out", "Broken pipe")
    current = current_launch()
    if current.size == 1 or not any(marker in text for marker in markers):
        return None
    first_line = text.partition("\n")[0]
    return LostContactError(f"{current.name} lost contact with another process: {first_line}")
