"""What a training can be told, as one checked block of settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from margrave.settings import Settings


class OptimizerSettings(Settings):
    """SGD or AdamW; norms and biases never decay."""

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0)
    """The rate that the schedule multiplies."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD; AdamW's first moment."""
    second_momentum: float = Field(default=0.999, ge=0, lt=1)
    """Of AdamW's second moment."""
    weight_decay: float = Field(default=5e-4, ge=0)
    centres_in_backward: bool = False
    """Update the head's class centres inside the backward pass (SGD), which saves the memory of
    their gradient; they are then not clipped, and `accumulate` must be 1."""

    @model_validator(mode="after")
    def _check(self) -> OptimizerSettings:
        if self.centres_in_backward and self.kind != "sgd":
            raise ValueError(f"centres_in_backward is for kind sgd, not {self.kind}")
        return self


class ScheduleSettings(Settings):
    """How the learning rate moves; times are in epochs."""

    kind: Literal["constant", "step", "cosine", "polynomial"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Linear rise from 0; at most half of the training."""
    milestones: tuple[float, ...] = ()
    """Of ``step``: where the rate is multiplied by `factor`."""
    factor: float = Field(default=0.1, gt=0, le=1)
    power: float = Field(default=2.0, gt=0)
    """Of ``polynomial``: (1 − progress)^power."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleSettings:
        if self.kind == "step" and not self.milestones:
            raise ValueError("kind 'step' needs milestones, the epochs at which the rate falls")
        return self


class TrainingSettings(Settings):
    """The loop's own settings."""

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=128, ge=2)
    """Images per optimiser step, over all micro-batches of all processes."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that a process cuts its part of a batch into, to fit the memory."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of all gradients together."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Of the backbone; the head computes in float32, or float64 (slow, for comparisons). ``auto``
    is bfloat16 where the machine has it, float16 with a scaled loss on GPUs that have only that,
    else float32."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several processes hold the backbone: each a whole copy, or each a share (FSDP2)."""
    rank_silence_seconds: float = Field(default=60.0, ge=1)
    """With several processes: after which a process that does not answer, because it was stopped
    or its machine is gone, is named and ends the run."""
    rank_stall_seconds: float = Field(default=1800.0, ge=1)
    """After which a process that answers but keeps the others waiting, because it hangs, is named
    and ends the run. The longest that one process may take for a step (or an evaluation) more than
    another."""
    find_unused_parameters: bool | Literal["auto"] = "auto"
    """Under ddp, whether each step looks for parameters that it leaves without a gradient, instead
    of waiting for them. ``auto`` tries the network once and does so where it has any; set it to
    true for a network that leaves out other ones from step to step (layer drop)."""
    channels_last: bool = True
    """Memory layout in which most machines convolve faster; not for networks with strided
    1 x 1 convolutions of fewer than 8 channels, which torch gets wrong in it."""
    weight_average: float | None = Field(default=None, gt=0, lt=1)
    """Momentum of an exponential moving average of the weights, which then is the model."""
    encoder_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of KappaFace's momentum encoder, where its estimator asks for one."""
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = "auto"
    """Processes that read images ahead, for each that trains. ``auto`` is none where images are
    cached or a CPU trains, which needs its cores itself, else up to 8 of a GPU's share of cores."""
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Cores for the arithmetic. ``auto`` is this process's share of those that it may use."""
    seed: int = Field(default=0, ge=0)
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    maximum_unreadable: int = Field(default=100, ge=0)
    """Unreadable images that are named and skipped before training gives up."""
    log_steps: int = Field(default=10, ge=1)
    """Steps between two lines of metrics."""
    checkpoint_seconds: float = Field(default=300.0, ge=0)
    """Seconds between two checkpoints; one is written after every epoch too."""
    tensorboard: bool = False
    """Write TensorBoard events beside the JSON lines (extra `track`)."""

    @field_validator("threads", mode="before")
    @classmethod
    def _read_former(cls, value: Any) -> Any:
        # Margrave 0.1 wrote null for what is auto now.
        return "auto" if value is None else value

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"batch_size = {self.batch_size} cut into accumulate = {self.accumulate} parts "
                "leaves parts of one image, which batch norm cannot use; lower accumulate"
            )
        if self.optimizer.centres_in_backward and self.precision == "float16":
            raise ValueError(
                "precision float16 leaves out steps whose gradient overflows, which "
                "optimizer.centres_in_backward would already have applied; set either back"
            )
        if self.optimizer.centres_in_backward and self.accumulate > 1:
            raise ValueError(
                f"accumulate = {self.accumulate} needs the centres' gradient of the whole batch, "
                "which optimizer.centres_in_backward never has; set either back"
            )
        return self
