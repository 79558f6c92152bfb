"""The training loop. It does not know which loss or which head it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from margrave.data import Batch, normalise
from margrave.training.checkpoint import load_checkpoint, remove_unfinished, save_checkpoint
from margrave.training.diagnosis import diagnose_gradient, diagnose_loss
from margrave.training.gradients import clip_gradients
from margrave.training.metrics import MetricsLog
from margrave.training.schedule import learning_rate_factor
from margrave.training.setup import Position, Training

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimiser step, for a progress bar."""

    step: int
    steps: int
    epoch: int
    epochs: int
    loss: float
    images_per_second: float


def fit(
    training: Training,
    folder: Path,
    *,
    resume: bool = False,
    resumed: Callable[[Position], None] = lambda position: None,
    after_epoch: Callable[[Training, MetricsLog], None] = lambda training, log: None,
    report: Callable[[StepReport], None] = lambda step: None,
) -> None:
    """Train to the end, from wherever the run stands.

    Args:
        training: the moving parts.
        folder: of the run: checkpoint and metrics are kept there.
        resume: go on from the folder's checkpoint.
        resumed: called with the checkpoint's position when going on from it.
        after_epoch: called after each epoch and before its checkpoint, to evaluate.
        report: called after each step.

    Raises:
        ValueError: nothing to resume; too many unreadable images.
        NonFiniteLossError: the loss or its gradient is infinite or NaN.
    """
    settings, checkpoint = training.settings, folder / CHECKPOINT
    log_length = 0
    remove_unfinished(folder)
    # What happened between setting up and here must not matter.
    torch.manual_seed(settings.seed)
    if resume:
        state = load_checkpoint(checkpoint)
        training.load_state_dict(state)
        log_length = state["log_length"]
        resumed(training.position)
    else:
        # Or an interrupted fresh start would be resumed from a former run.
        checkpoint.unlink(missing_ok=True)
    log = MetricsLog(folder, settings.tensorboard, log_length, training.position.step)
    training.head.train()
    training.network.train()

    def save() -> None:
        save_checkpoint(checkpoint, {**training.state_dict(), "log_length": log.length})

    try:
        last_save = time.monotonic()
        for epoch in range(training.position.epoch, settings.epochs):
            training.sampler.start_at(epoch, training.position.batch)
            started = time.monotonic()
            for batch in training.loader:
                _note_unreadable(training, batch, log)
                # Batch norm cannot learn from a single image.
                if len(batch.labels) > 1:
                    values = _train_step(training, batch, checkpoint)
                    _record(training, log, values, len(batch.labels), started, report)
                position = training.position
                training.position = Position(epoch, position.batch + 1, position.step + 1)
                if time.monotonic() - last_save >= settings.checkpoint_seconds:
                    save()
                    last_save = time.monotonic()
                started = time.monotonic()
            training.head.end_epoch()
            training.position = Position(epoch + 1, 0, training.position.step)
            after_epoch(training, log)
            save()
    finally:
        log.close()


def _train_step(training: Training, batch: Batch, checkpoint: Path) -> dict[str, float]:
    """One optimiser step over a batch, in micro-batches; the gradient is the whole batch's."""
    settings, head = training.settings, training.head
    epoch = training.position.step / training.steps_per_epoch
    factor = learning_rate_factor(settings.schedule, epoch, settings.epochs)
    learning_rate = settings.optimizer.learning_rate * factor
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate
    if settings.optimizer.centres_in_backward:
        head.learning_rate = learning_rate

    device = training.fabric.device
    total, loss_sum, norm_sum = len(batch.labels), 0.0, 0.0
    # No part is of a single image, from which batch norm could not learn.
    sections = min(settings.accumulate, total // 2)
    parts = zip(
        *(tensor.tensor_split(sections) for tensor in (batch.images, batch.labels, batch.indices)),
        strict=True,
    )
    for number, (pixels, labels, indices) in enumerate(parts):
        images = normalise(pixels.to(device, non_blocking=True))
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        embeddings = training.backbone(images)
        losses = head(
            embeddings,
            labels.to(device),
            sample_indices=indices.to(device),
            momentum_embeddings=None if training.encoder is None else training.encoder(images),
            new_step=number == 0,
            reduction="none",
        )
        loss = losses.sum() / total
        if not torch.isfinite(loss):
            raise diagnose_loss(training, embeddings, labels, indices, checkpoint)
        training.fabric.backward(loss)
        loss_sum += loss.item()
        norm_sum += embeddings.detach().float().norm(dim=1).sum().item()

    parameters = [p for group in training.optimizer.param_groups for p in group["params"]]
    gradient_norm = clip_gradients(parameters, settings.clip_norm).item()
    if not math.isfinite(gradient_norm):
        raise diagnose_gradient(training, checkpoint)
    training.optimizer.step()
    training.optimizer.zero_grad()
    for follower in (training.average, training.encoder):
        if follower is not None:
            follower.follow(training.network)
    return {
        "loss": loss_sum,
        "learning_rate": learning_rate,
        "gradient_norm": gradient_norm,
        "feature_norm": norm_sum / total,
    }


def _note_unreadable(training: Training, batch: Batch, log: MetricsLog) -> None:
    for image in batch.unreadable:
        if image.name not in training.unreadable:
            training.unreadable[image.name] = image.reason
            fault = {"name": image.name, "reason": image.reason}
            log.write("unreadable", training.position.step, fault)
    limit = training.settings.maximum_unreadable
    if len(training.unreadable) > limit:
        shown = "\n  ".join(list(training.unreadable.values())[:10])
        raise ValueError(
            f"{len(training.unreadable)} images cannot be read, more than "
            f"training.maximum_unreadable = {limit}; mend or remove them, or raise the limit:\n"
            f"  {shown}"
        )


def _record(
    training: Training,
    log: MetricsLog,
    values: dict[str, float],
    images: int,
    started: float,
    report: Callable[[StepReport], None],
) -> None:
    settings, position = training.settings, training.position
    step = position.step + 1
    speed = images / max(time.monotonic() - started, 1e-9)
    steps = settings.epochs * training.steps_per_epoch
    # The first step and the last of each epoch too, or a short training would have no curve.
    ends_epoch = step % training.steps_per_epoch == 0
    if step == 1 or step % settings.log_steps == 0 or ends_epoch:
        statistics = {name: value.item() for name, value in training.head.scalars().items()}
        log.write(
            "training",
            step,
            {
                "epoch": step / training.steps_per_epoch,
                **values,
                **statistics,
                "images_per_second": round(speed, 1),
                "unreadable": len(training.unreadable),
            },
        )
    report(
        StepReport(
            step=step,
            steps=steps,
            epoch=position.epoch + 1,
            epochs=settings.epochs,
            loss=values["loss"],
            images_per_second=speed,
        )
    )
