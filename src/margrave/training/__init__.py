"""Training: building the parts from settings, the loop, and its checkpoints."""

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
    "fit",
    "latest_checkpoint",
    "locked",
    "read_metrics",
    "read_state",
    "remove_checkpoints",
    "set_up",
]
