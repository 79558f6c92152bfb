"""The learning rate schedule, as a pure function of time."""

from __future__ import annotations

import math

from margrave.training.settings import ScheduleSettings


def learning_rate_factor(schedule: ScheduleSettings, epoch: float, epochs: float) -> float:
    """The factor that multiplies the base learning rate at a given time.

    Args:
        schedule: the schedule's settings.
        epoch: time since the start of the training, in epochs; fractions are allowed.
        epochs: total length of the training, in epochs.

    >>> steps = ScheduleSettings(kind="step", milestones=(10, 18), factor=0.1)
    >>> [round(learning_rate_factor(steps, epoch, 24), 3) for epoch in (0, 10, 20)]
    [1.0, 0.1, 0.01]
    >>> learning_rate_factor(ScheduleSettings(warmup_epochs=2), 1, 10)
    0.5
    """
    warmup = min(schedule.warmup_epochs, epochs / 2)
    if epoch < warmup:
        return epoch / warmup
    if schedule.kind == "step":
        return schedule.factor ** sum(epoch >= milestone for milestone in schedule.milestones)
    if schedule.kind == "constant":
        return 1.0
    progress = min((epoch - warmup) / (epochs - warmup), 1.0)
    if schedule.kind == "polynomial":
        return (1 - progress) ** schedule.power
    # The kind is cosine.
    return (1 + math.cos(math.pi * progress)) / 2
