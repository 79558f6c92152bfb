"""Loggers that send a run's metrics to other tools, such as TensorBoard.

A logger is any `lightning_fabric.loggers.Logger`. A registered function creates it from three
arguments: the run's folder; the step after which training resumes (0 for a new run); and the tool's
identifier of the run (None if the run is new to the tool).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from margrave.files import atomic_write, read_json
from margrave.registry import Registry

if TYPE_CHECKING:
    from lightning_fabric.loggers import Logger

StartLogger = Callable[[Path, int, str | None], "Logger"]
"""(run's folder, step, tool's identifier of the run) -> logger; see the module's description."""
IDENTIFIERS_FILE = "loggers.json"
"""The file in a run's folder with each tool's identifier of the run."""
MAX_IDENTIFIERS_BYTES = 10**5
"""Maximum size of the identifiers file; a larger file is ignored."""

LOGGERS: Registry[StartLogger] = Registry("logger")


@LOGGERS.register("tensorboard")
def start_tensorboard(folder: Path, step: int, identifier: str | None) -> Logger:
    """Log TensorBoard events into the run's folder; hide events that were logged after `step`."""
    from lightning_fabric.loggers import TensorBoardLogger

    del identifier
    return TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step + 1)


@LOGGERS.register("wandb")
def start_wandb(folder: Path, step: int, identifier: str | None) -> Logger:
    """Log to Weights & Biases, into the project WANDB_PROJECT (default ``margrave``).

    A resumed run continues the same W&B run, which ignores values of steps that it already has.
    """
    from pytorch_lightning.loggers import WandbLogger

    del step
    return WandbLogger(
        name=folder.name,
        save_dir=folder,
        id=identifier,
        resume="allow",
        project=os.environ.get("WANDB_PROJECT", "margrave"),
    )


@LOGGERS.register("mlflow")
def start_mlflow(folder: Path, step: int, identifier: str | None) -> Logger:
    """Log to MLflow at MLFLOW_TRACKING_URI, into the experiment MLFLOW_EXPERIMENT_NAME.

    The default experiment is ``margrave``.
    """
    from pytorch_lightning.loggers import MLFlowLogger

    del step
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise ValueError("set MLFLOW_TRACKING_URI to the address of the MLflow server or database")
    return MLFlowLogger(
        tracking_uri=address,
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "margrave"),
        run_name=folder.name,
        run_id=identifier,
    )


class Loggers:
    """The loggers of a run. A logger that fails during training is dropped with a warning.

    Args:
        names: registered names, or import paths of functions with the arguments of `StartLogger`.
        folder: the run's folder.
        step: the step after which training resumes; 0 for a new run.

    Raises:
        ValueError: a logger is unknown, not installed, or cannot start.
    """

    def __init__(self, names: Iterable[str], folder: Path, step: int) -> None:
        self._loggers: dict[str, Logger] = {}
        path = folder / IDENTIFIERS_FILE
        identifiers = _read_identifiers(path)
        for name in names:
            start = LOGGERS.get(name)
            try:
                logger = start(folder, step, identifiers.get(name))
                # A logger connects to its tool on first use. This call makes a failure show now.
                logger.log_metrics({}, step)
            except ImportError as error:
                raise ValueError(
                    f"training.loggers: {name} is not installed ({error}); install "
                    f"margrave[{'track' if name == 'tensorboard' else name}], or remove it from "
                    "training.loggers"
                ) from error
            except Exception as error:
                raise ValueError(f"training.loggers: {name} cannot start: {error}") from error
            self._loggers[name] = logger
            # Lightning's loggers return the tool's identifier of the run as their version.
            identifier = getattr(logger, "version", None)
            if isinstance(identifier, str):
                identifiers[name] = identifier
        if self._loggers:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(identifiers))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log a step's values."""
        self._call_each(lambda logger: logger.log_metrics(dict(values), step))

    def close(self, succeeded: bool) -> None:
        """Finish the loggers' runs; `succeeded` is False if training stopped before its end."""
        status = "success" if succeeded else "failed"
        self._call_each(lambda logger: logger.finalize(status))

    def _call_each(self, action: Callable[[Any], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                action(logger)
            except Exception as error:
                warnings.warn(
                    f"the logger {name} failed and is off for the rest of the run: {error}",
                    stacklevel=3,
                )
                del self._loggers[name]


def _read_identifiers(path: Path) -> dict[str, str]:
    """Each tool's identifier of the run, by logger name; empty if the file cannot be read."""
    try:
        if path.stat().st_size > MAX_IDENTIFIERS_BYTES:
            return {}
        values = read_json(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return {}
    pairs = values.items() if isinstance(values, dict) else ()
    return {name: identifier for name, identifier in pairs if isinstance(identifier, str)}
