"""Settings of the optimizer, the schedule and the training loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from margrave.settings import Settings
from margrave.training.loggers import LOGGERS


class OptimizerSettings(Settings):
    """SGD or AdamW; weight decay never applies to biases or the parameters of norm layers."""

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    """The base learning rate, which the schedule multiplies by a factor."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD momentum; AdamW's β₁."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's β₂."""
    weight_decay: float = Field(default=5e-4, ge=0)
    centers_in_backward: bool = False
    """Update the class centers inside the backward pass, which saves the memory of their gradient.
    Requires SGD and `accumulate` = 1; `clip_norm` then does not apply to the centers."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerSettings:
        if self.centers_in_backward and self.kind != "sgd":
            raise ValueError(f"centers_in_backward needs optimizer kind sgd, not {self.kind}")
        return self


class ScheduleSettings(Settings):
    """The learning rate schedule; times are in epochs."""

    kind: Literal["constant", "step", "cosine", "polynomial"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Length of the linear warmup from 0; limited to half of the training."""
    milestones: tuple[float, ...] = ()
    """For ``step``: the times, counted from the start of the training, at which the learning rate
    is multiplied by `factor`."""
    factor: float = Field(default=0.1, gt=0, le=1)
    power: float = Field(default=2.0, gt=0)
    """For ``polynomial``: the base learning rate is multiplied by (1 − progress)^power, where
    progress rises from 0 after the warmup to 1 at the end."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleSettings:
        if self.kind == "step" and not self.milestones:
            raise ValueError(
                "kind 'step' needs milestones: the epochs at which the learning rate falls"
            )
        return self


class TrainingSettings(Settings):
    """Settings of the training loop."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=2)
    """Images per optimizer step, over all micro-batches of all processes."""
    accumulate: int = Field(default=1, ge=1)
    """Number of micro-batches that each process makes of its share of a batch, to save memory."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: float | None = Field(default=None, gt=0)
    """Maximum norm of all gradients together; larger gradients are scaled down."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Precision of the backbone. ``auto`` is bfloat16 where it is faster, float16 with a scaled
    loss on GPUs without bfloat16, else float32. The head computes in float32, or in float64 with
    ``float64`` (slow, for comparisons)."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several processes hold the backbone: a full copy each (ddp) or a shard each (fsdp,
    FSDP2)."""
    rank_silence_seconds: float = Field(default=60.0, ge=1)
    """With several processes: how long a process may stay silent before the run ends with an error
    that names it. A process is silent if it was stopped or its machine is gone."""
    rank_stall_seconds: float = Field(default=1800.0, ge=1)
    """With several processes: how long a hanging process may keep the others waiting before the run
    ends with an error that names it. Set it above the largest difference between processes in the
    time for a step or an evaluation."""
    find_unused_parameters: bool | Literal["auto"] = "auto"
    """Under ddp: whether each step looks for parameters without a gradient instead of waiting for
    them. ``auto`` tries the network once, and looks in each step only if the trial finds any. Use
    true for a network whose unused parameters change from step to step (layer drop)."""
    channels_last: bool = True
    """Use the channels-last memory layout, in which most machines convolve faster. It is not used
    for networks with strided 1 x 1 convolutions of fewer than 8 channels, which torch computes
    incorrectly in this layout."""
    weight_average: float | None = Field(default=None, gt=0, lt=1)
    """Momentum of an exponential moving average of the weights: the old average's weight in each
    update. If set, the averaged weights are evaluated and saved as the model."""
    encoder_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of KappaFace's momentum encoder; ignored unless the loss uses that encoder."""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that load images, per training process. ``auto`` is 0 if images are cached, or
    if training runs on the CPU, where it needs the cores; else the cores per training process
    minus 1, at most 8."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """CPU threads for computation. ``auto`` is this process's share of the available cores, unless
    OMP_NUM_THREADS is set."""
    seed: int = Field(default=0, ge=0)
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    maximum_unreadable: int = Field(default=100, ge=0)
    """Maximum number of unreadable images to report and skip; one more stops the training."""
    log_steps: int = Field(default=10, ge=1)
    """Steps between two lines of the metrics file."""
    checkpoint_seconds: float = Field(default=300.0, ge=0)
    """Seconds between two checkpoints; every epoch also ends with one."""
    loggers: tuple[str, ...] = ()
    """Also log to ``tensorboard`` (extra `track`), ``wandb`` or ``mlflow`` (extras of the same
    name), or to your own logger, given by its import path."""

    @field_validator("threads", mode="before")
    @classmethod
    def _accept_null(cls, value: Any) -> Any:
        # Margrave 0.1 wrote null for auto.
        return "auto" if value is None else value

    @field_validator("loggers")
    @classmethod
    def _check_loggers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            LOGGERS.get(name)
        return names

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"batch_size = {self.batch_size} with accumulate = {self.accumulate} leaves "
                "micro-batches of fewer than two images, which batch norm cannot use; lower "
                "accumulate"
            )
        if self.optimizer.centers_in_backward and self.precision == "float16":
            raise ValueError(
                "precision float16 must skip a step whose gradient overflows, but with "
                "optimizer.centers_in_backward the class centers have already been updated; change "
                "one of them"
            )
        if self.optimizer.centers_in_backward and self.accumulate > 1:
            raise ValueError(
                f"accumulate = {self.accumulate} needs the class centers' gradient over the whole "
                "batch, but optimizer.centers_in_backward never stores it; change one of them"
            )
        return self
