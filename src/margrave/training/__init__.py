"""Training: settings to moving parts, the loop, and its checkpoints."""

from margrave.training.diagnosis import NonFiniteLossError
from margrave.training.loop import CHECKPOINT, StepReport, fit
from margrave.training.metrics import MetricsLog, read_metrics
from margrave.training.settings import OptimizerSettings, ScheduleSettings, TrainingSettings
from margrave.training.setup import Position, Training, set_up

__all__ = [
    "CHECKPOINT",
    "MetricsLog",
    "NonFiniteLossError",
    "OptimizerSettings",
    "Position",
    "ScheduleSettings",
    "StepReport",
    "Training",
    "TrainingSettings",
    "fit",
    "read_metrics",
    "set_up",
]
