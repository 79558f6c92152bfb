"""The training loop. It does not know which loss or which head it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from margrave.data import Batch, Unreadable, normalise
from margrave.distributed import (
    all_reduce_max,
    all_reduce_sum,
    average_,
    gather_objects,
    gather_rows,
)
from margrave.training.checkpoint import latest_checkpoint, remove_checkpoints, remove_unfinished
from margrave.training.diagnosis import NonFiniteLossError, diagnose_gradient, diagnose_loss
from margrave.training.gradients import clip_gradients
from margrave.training.metrics import MetricsLog
from margrave.training.schedule import learning_rate_factor
from margrave.training.state import Position, Training


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
    settings, first = training.settings, training.world.rank == 0
    log_length = 0
    if first:
        remove_unfinished(folder)
    if resume:
        checkpoint = latest_checkpoint(folder)
        if checkpoint is None:
            raise ValueError(f"{folder}: no checkpoint to resume from; start without --resume")
        log_length = training.load(checkpoint)
        resumed(training.position)
    elif first:
        remove_checkpoints(folder)
    kept = folder if first else None
    log = MetricsLog(kept, settings.tensorboard, log_length, training.position.step)
    training.head.train()
    training.network.train()
    try:
        last_save = time.monotonic()
        for epoch in range(training.position.epoch, settings.epochs):
            training.sampler.start_at(epoch, training.position.batch)
            started = time.monotonic()
            for batch in training.loader:
                due = time.monotonic() - last_save >= settings.checkpoint_seconds
                sizes, due = _agree(training, batch, log, due)
                # Batch norm cannot learn from a single image.
                if min(sizes) > 1:
                    values = _train_step(training, batch, sizes, folder)
                    _record(training, log, values, sum(sizes), started, report)
                position = training.position
                training.position = Position(epoch, position.batch + 1, position.step + 1)
                if due:
                    training.save(folder, log.length)
                    last_save = time.monotonic()
                started = time.monotonic()
            training.head.end_epoch()
            training.position = Position(epoch + 1, 0, training.position.step)
            after_epoch(training, log)
            training.save(folder, log.length)
    except NonFiniteLossError as error:
        log.write("stopped", training.position.step, {"reason": str(error)})
        raise
    finally:
        log.close()


def _agree(
    training: Training, batch: Batch, log: MetricsLog, due: bool
) -> tuple[tuple[int, ...], bool]:
    """How many images each rank brings to a step, and whether any wants a checkpoint after it.

    What no rank could read is known to all of them afterwards.
    """
    world, device = training.world, training.fabric.device
    fresh = [image for image in batch.unreadable if image.name not in training.unreadable]
    own = torch.tensor([[len(batch.labels), len(fresh), int(due)]], device=device)
    sizes, unread, wanted = gather_rows(own, [1] * world.size, world).T.tolist()
    if any(unread):
        everyones = gather_objects(fresh, world)
        _note_unreadable(training, [image for images in everyones for image in images], log)
    return tuple(sizes), any(wanted)


def _seed(training: Training) -> None:
    """Draws of a step (dropout) depend on the seed, the step and the rank alone."""
    words = [training.settings.seed, training.position.step, training.world.rank]
    mixed = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))


def _train_step(
    training: Training, batch: Batch, sizes: Sequence[int], folder: Path
) -> dict[str, float]:
    """One optimiser step over the batch of all ranks, each in micro-batches.

    The gradient is that of the mean over all images, however they are shared out.
    """
    settings, head, world = training.settings, training.head, training.world
    _seed(training)
    epoch = training.position.step / training.steps_per_epoch
    factor = learning_rate_factor(settings.schedule, epoch, settings.epochs)
    learning_rate = settings.optimizer.learning_rate * factor
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate
    if settings.optimizer.centres_in_backward:
        head.learning_rate = learning_rate

    device = training.fabric.device
    total = sum(sizes)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    # No part is of a single image, from which batch norm could not learn.
    sections = min(settings.accumulate, min(sizes) // 2)
    parts = zip(
        *(tensor.tensor_split(sections) for tensor in (batch.images, batch.labels, batch.indices)),
        strict=True,
    )
    for number, (pixels, labels, indices) in enumerate(parts):
        images = normalise(pixels.to(device, non_blocking=True)).to(training.dtype)
        if not settings.channels_last:
            images = images.contiguous()
        # Only the last part's backward pass averages the backbone's gradient over ranks.
        with training.fabric.no_backward_sync(training.backbone, enabled=number + 1 < sections):
            embeddings = training.backbone(images)
            losses = head(
                embeddings,
                labels.to(device),
                sample_indices=indices.to(device),
                momentum_embeddings=None if training.encoder is None else training.encoder(images),
                new_step=number == 0,
                reduction="none",
            )
            # The backbone's gradient is averaged over ranks, hence their number.
            loss = losses.sum() * (world.size / total)
            if all_reduce_max((~torch.isfinite(loss)).int(), world):
                raise diagnose_loss(training, embeddings, labels, indices, folder)
            training.fabric.backward(loss)
        norms = embeddings.detach().double().norm(dim=1)
        sums += torch.stack([losses.detach().double().sum(), norms.sum()])

    average_(training.average_buffers(), world)
    of_head = [p for p in head.parameters() if p.requires_grad]
    gradient_norm = clip_gradients(
        training.network.parameters(), settings.clip_norm, split=of_head, world=head.world
    ).item()
    if not math.isfinite(gradient_norm):
        raise diagnose_gradient(training, folder)
    training.optimizer.step()
    training.optimizer.zero_grad()
    for follower in (training.average, training.encoder):
        if follower is not None:
            follower.follow(training.network)
    loss_mean, norm_mean = (all_reduce_sum(sums, world) / total).tolist()
    return {
        "loss": loss_mean,
        "learning_rate": learning_rate,
        "gradient_norm": gradient_norm,
        "feature_norm": norm_mean,
    }


def _note_unreadable(training: Training, images: Sequence[Unreadable], log: MetricsLog) -> None:
    for image in images:
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
