"""Training: set-up from settings, the training loop, its checkpoints and its metrics."""

from margrave.training.adaptation import (
    AdaptationRecord,
    digest_of_examples,
    extreme_classes,
    images_of_class,
    read_adaptation,
)
from margrave.training.checkpoint import latest_checkpoint, read_state, remove_checkpoints
from margrave.training.diagnosis import NonFiniteLossError
from margrave.training.interruption import StopRequested, locked
from margrave.training.loop import StepReport, fit
from margrave.training.metrics import MetricsLog, read_metrics
from margrave.training.precision import PrecisionChoice, choose_precision
from margrave.training.settings import OptimizerSettings, ScheduleSettings, TrainingSettings
from margrave.training.setup import set_up
from margrave.training.state import Position, TrainingState, checkpoint_precision

__all__ = [
    "AdaptationRecord",
    "MetricsLog",
    "NonFiniteLossError",
    "OptimizerSettings",
    "Position",
    "PrecisionChoice",
    "ScheduleSettings",
    "StepReport",
    "StopRequested",
    "TrainingSettings",
    "TrainingState",
    "checkpoint_precision",
    "choose_precision",
    "digest_of_examples",
    "extreme_classes",
    "fit",
    "images_of_class",
    "latest_checkpoint",
    "locked",
    "read_adaptation",
    "read_metrics",
    "read_state",
    "remove_checkpoints",
    "set_up",
]
