"""Train a study's cells in parallel, each in its own process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from margrave.config import RunConfig
from margrave.distributed import end_with_parent
from margrave.runs import Run, RunEvents, RunFolder
from margrave.studies.settings import Cell
from margrave.training import StepReport, StopRequested, remove_checkpoints

REPORT_SECONDS = 0.5
"""Shortest time between two reports of a training's step."""


@dataclass
class GridProgress:
    """The progress of a study's trainings.

    Attributes:
        total: number of trainings.
        finished: number of finished trainings, including `done_before`.
        done_before: number of trainings that had finished before `train_cells` was called.
        running: name of a running training -> fraction of its steps that are done.
        failed: name of a failed training -> reason.
    """

    total: int
    finished: int = 0
    done_before: int = 0
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> float:
        """Number of finished and failed trainings, plus the fractions of the running ones."""
        return self.finished + len(self.failed) + sum(self.running.values())


Report = Callable[[GridProgress], None]


class _PipeEvents(RunEvents):
    """Sends a training's steps to the study's process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def training(self) -> Iterator[Callable[[StepReport], None]]:
        last_sent = 0.0

        def report(step: StepReport) -> None:
            nonlocal last_sent
            if time.monotonic() - last_sent >= REPORT_SECONDS:
                last_sent = time.monotonic()
                self._connection.send(("step", step.step / step.steps))

        yield report


def train_cell(config: RunConfig, folder: Path, connection: Connection) -> None:
    """Train one cell or resume its training; this is the entry point of the cell's process."""
    end_with_parent()
    try:
        _train(config, folder, connection)
        connection.send(("finished", ""))
    except (StopRequested, KeyboardInterrupt):
        connection.send(("stopped", ""))
    # Any error, even one in custom network code, is reported, and the other trainings go on.
    except Exception as error:
        connection.send(("failed", f"{error}" or type(error).__name__))
    finally:
        connection.close()


def _train(config: RunConfig, folder: Path, connection: Connection) -> None:
    """Train one cell; resume from its checkpoint if that can be loaded."""
    run = Run(config, folder, _PipeEvents(connection))
    checkpoint = RunFolder(folder).checkpoint
    if checkpoint is not None:
        try:
            # Only a trial, whose state is discarded; `run.train` loads the checkpoint again.
            run.open_training(resume=True).load(checkpoint)
        except ValueError as error:
            connection.send(("message", f"{error}; this training starts from the beginning"))
            remove_checkpoints(folder)
            checkpoint = None
    training = run.open_training(resume=checkpoint is not None)
    run.train(training, resume=checkpoint is not None)


def train_cells(
    cells: Sequence[Cell],
    folder_of: Callable[[Cell], Path],
    progress: GridProgress,
    *,
    slots: Sequence[Mapping[str, str]],
    report: Report,
    message: Callable[[str], None],
) -> None:
    """Train cells in parallel, one in each slot.

    If a cell fails, the others continue, and `progress.failed` gets the reason.

    Args:
        cells: the cells to train, in order.
        folder_of: returns a cell's folder.
        progress: updated in place.
        slots: one mapping per parallel training: the environment variables of its process.
        report: called with the progress at least once a second.
        message: called with a line of information.

    Raises:
        KeyboardInterrupt: a signal stopped the trainings, after each had written a checkpoint.
    """
    waiting, running = list(cells), list[_Running]()
    free = list(range(len(slots)))
    try:
        while waiting or running:
            while waiting and free:
                slot = free.pop(0)
                running.append(_Running(waiting.pop(0), folder_of, slot, slots[slot]))
            wait([training.connection for training in running], timeout=1)
            for training in list(running):
                ended = training.receive(progress, message)
                if ended:
                    running.remove(training)
                    free.append(training.slot)
                if training.was_stopped:
                    raise KeyboardInterrupt
            report(progress)
    finally:
        for training in running:
            training.ask_to_stop()
        for training in running:
            training.process.join()


class _Running:
    """The process of one training."""

    def __init__(
        self,
        cell: Cell,
        folder_of: Callable[[Cell], Path],
        slot: int,
        environment: Mapping[str, str],
    ) -> None:
        self.cell, self.slot, self.was_stopped = cell, slot, False
        # With fork, the new process would inherit locks that other threads hold, and could hang.
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe(duplex=False)
        self.process = context.Process(
            target=train_cell, args=(cell.config, folder_of(cell), child_connection), daemon=False
        )
        with _environment(environment):
            self.process.start()
        child_connection.close()
        self._outcome: tuple[str, str] | None = None

    def receive(self, progress: GridProgress, message: Callable[[str], None]) -> bool:
        """Handle the messages that the process has sent; return whether it has ended."""
        name = self.cell.name
        progress.running.setdefault(name, 0.0)
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "step":
                    progress.running[name] = float(value)
                elif kind == "message":
                    message(f"{name}: {value}")
                else:
                    self._outcome = kind, str(value)
            return False
        # The process has closed its end of the connection.
        except (EOFError, OSError):
            pass
        self.process.join()
        self.connection.close()
        progress.running.pop(name, None)
        kind, value = self._outcome or ("failed", _exit_reason(self.process.exitcode or 0))
        if kind == "finished":
            progress.finished += 1
        elif kind == "stopped":
            self.was_stopped = True
        else:
            progress.failed[name] = value
        return True

    def ask_to_stop(self) -> None:
        """Ask the process to write a checkpoint and end."""
        if self.process.is_alive():
            self.process.terminate()


def _exit_reason(code: int) -> str:
    """Why a process ended without a message; a negative exit code is minus a signal's number."""
    if code >= 0:
        return f"its process ended with status {code}"
    cause = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
    return f"its process was killed ({signal.Signals(-code).name}){cause}"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which a process started in this context inherits."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def slots_for(devices: int | None, threads: int) -> list[dict[str, Any]]:
    """The environment variables of each parallel training: its GPU, or its number of threads.

    Args:
        devices: number of parallel trainings, which may share GPUs; None uses one per GPU or,
            without GPUs, as many as the cores allow with this number of threads each.
        threads: threads of each training; not used with GPUs.
    """
    import torch

    from margrave.hardware import usable_cores

    gpus = torch.cuda.device_count()
    count = devices or gpus or max(1, usable_cores() // threads)
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpu_names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        return [
            {"CUDA_VISIBLE_DEVICES": gpu_names[index % len(gpu_names)]} for index in range(count)
        ]
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(count)]
