"""Loggers that show a run elsewhere, beside its metrics file: one function per logger.

A logger is any `lightning_fabric.loggers.Logger`. Its function gets the run's folder, the last step
that is kept when a run is resumed, and the logger's run identifier of the earlier process, or None.
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
IDENTIFIERS = "loggers.json"
MAX_IDENTIFIERS = 10**5
"""Size in bytes beyond which the file of identifiers is not believed."""

LOGGERS: Registry[StartLogger] = Registry("logger")


@LOGGERS.register("tensorboard")
def start_tensorboard(folder: Path, step: int, identifier: str | None) -> Logger:
    """TensorBoard events in the run's folder; later events than the step are hidden."""
    from lightning_fabric.loggers import TensorBoardLogger

    del identifier
    return TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step + 1)


@LOGGERS.register("wandb")
def start_wandb(folder: Path, step: int, identifier: str | None) -> Logger:
    """Weights & Biases, in the project WANDB_PROJECT or ``margrave``.

    A resumed run is the same one there; steps that were logged already are not logged again.
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
    """MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME or ``margrave``."""
    from pytorch_lightning.loggers import MLFlowLogger

    del step
    address = os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise ValueError("set MLFLOW_TRACKING_URI to the address of its server or database")
    return MLFlowLogger(
        tracking_uri=address,
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", "margrave"),
        run_name=folder.name,
        run_id=identifier,
    )


class Loggers:
    """The loggers of a run. One that fails while training runs is left out from then on.

    Args:
        names: registered names, or import paths of functions like those above.
        folder: the run's folder.
        step: the last step that is kept.

    Raises:
        ValueError: a logger is unknown, not installed, or cannot start.
    """

    def __init__(self, names: Iterable[str], folder: Path, step: int) -> None:
        self._loggers: dict[str, Logger] = {}
        path = folder / IDENTIFIERS
        known = _read_identifiers(path)
        for name in names:
            start = LOGGERS.get(name)
            try:
                logger = start(folder, step, known.get(name))
                # A logger's run begins with its first use.
                logger.log_metrics({}, step)
            except ImportError as error:
                raise ValueError(
                    f"training.loggers: {name} is not installed ({error}); install "
                    f"margrave[{'track' if name == 'tensorboard' else name}], or leave it out"
                ) from error
            except Exception as error:
                raise ValueError(f"training.loggers: {name} cannot start: {error}") from error
            self._loggers[name] = logger
            identifier = getattr(logger, "version", None)
            if isinstance(identifier, str):
                known[name] = identifier
        if self._loggers:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(known))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log a step's values."""
        self._each(lambda logger: logger.log_metrics(dict(values), step))

    def close(self) -> None:
        """Finish the loggers' runs."""
        self._each(lambda logger: logger.finalize("success"))

    def _each(self, action: Callable[[Any], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                action(logger)
            except Exception as error:
                warnings.warn(
                    f"the logger {name} failed and is left out from here on: {error}", stacklevel=3
                )
                del self._loggers[name]


def _read_identifiers(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > MAX_IDENTIFIERS:
            return {}
        values = read_json(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return {}
    entries = values.items() if isinstance(values, dict) else ()
    return {name: value for name, value in entries if isinstance(value, str)}
