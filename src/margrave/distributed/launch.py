"""Starting several processes on this machine, and knowing that one is one of several."""

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
SECONDS_TO_END = 20
"""What the other processes get to end by themselves when one has failed."""
SECONDS_AFTER_LAUNCHER = 7
"""The same when the launcher is gone."""


class RankError(RuntimeError):
    """One of the processes that train together has failed, and the others were stopped."""


class LostContactError(RankError):
    """Communication with another process has failed, which nearly always is a consequence."""


@dataclass(frozen=True)
class Launch:
    """What a launcher (ours, or torchrun) has told this process.

    Attributes:
        rank: of this process, counted over all machines.
        size: how many processes there are.
        local_size: how many of them are on this machine.
        local_rank: of this process among those.

    >>> Launch().size
    1
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    local_rank: int = 0

    @property
    def name(self) -> str:
        """How people count: ``process 2 of 4``."""
        return f"process {self.rank + 1} of {self.size}"


def current_launch() -> Launch:
    """Read from the environment; a process started by hand is alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    return Launch(
        rank=int(os.environ.get("RANK", 0)),
        size=size,
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
    )


def launch(processes: int, command: Sequence[str]) -> None:
    """Run a command in several processes of this machine that find each other, to the end.

    Args:
        processes: how many.
        command: program and arguments, the same for each.

    Raises:
        RankError: one failed; the others have been stopped.
        KeyboardInterrupt: so have all of them been.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What it reports is told here, in fewer words.
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
        shutdown_timeout=SECONDS_TO_END,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise RankError(_told(error, processes)) from error
    finally:
        del os.environ[LAUNCHED_BY_MARGRAVE]


def _told(error: object, processes: int) -> str:
    """The failure that the others followed from, in words."""
    failures: dict[int, object] = getattr(error, "failures", {})

    def rank_and_code(rank: int) -> tuple[str, int]:
        return Launch(rank, processes).name, getattr(failures[rank], "exitcode", 1)

    stopped = {-signal.SIGTERM}
    times = {rank: float(getattr(failures[rank], "timestamp", 0)) for rank in failures}
    # What was killed from outside comes first: it is why others lost touch. Later the launcher
    # kills what does not end by itself.
    latest = min(times.values(), default=0.0) + SECONDS_TO_END / 2
    for rank in sorted(failures):
        name, code = rank_and_code(rank)
        if code < 0 and code not in stopped and times[rank] <= latest:
            said = f"{name} was killed ({signal.Signals(-code).name})"
            if code == -signal.SIGKILL:
                said += ", perhaps for want of memory"
            return f"{said}; the others were stopped"
    recorded = []
    for rank in sorted(failures):
        _, code = rank_and_code(rank)
        message = getattr(failures[rank], "message", "")
        if code not in stopped and isinstance(message, dict):
            # As `record_failure` left it: the error's class and its text.
            kind, _, text = str(message["message"]).partition(": ")
            recorded.append((kind == LostContactError.__name__, rank, text))
    if recorded:
        return min(recorded)[2]
    return "; ".join("{} ended with status {}".format(*rank_and_code(rank)) for rank in failures)


def record_failure(error: BaseException) -> bool:
    """Leave an error for the launcher to tell; whether there is one that tells it for all."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(error)
    return has_launcher()


def has_launcher() -> bool:
    """Whether our launcher started this process, and speaks for all of them."""
    return LAUNCHED_BY_MARGRAVE in os.environ


def end_with_launcher() -> None:
    """Let this rank end soon after its launcher, however that ended; call it in every rank."""
    if not has_launcher():
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        # First as a cluster would, so that what can be finished is.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_AFTER_LAUNCHER)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def lost_touch(error: RuntimeError) -> RankError | None:
    """An error of communication in words, or None where it is of another sort."""
    text = str(error)
    signs = ("gloo", "pair.cc", "Connection", "NCCL", "ProcessGroup", "Timed out", "Broken pipe")
    launched = current_launch()
    if launched.size == 1 or not any(sign in text for sign in signs):
        return None
    first_line = text.partition("\n")[0]
    return LostContactError(f"{launched.name} lost touch with another: {first_line}")
