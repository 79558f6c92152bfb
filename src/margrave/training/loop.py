"""The training loop. It does not know which loss or which head it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from margrave.data import Batch, Unreadable, normalise
from margrave.distributed import RankWatch, average_, gather_objects, gather_rows
from margrave.training.checkpoint import latest_checkpoint, remove_checkpoints, remove_unfinished
from margrave.training.diagnosis import NonFiniteLossError, diagnose_gradient, diagnose_loss
from margrave.training.gradients import clip_gradients
from margrave.training.interruption import StopRequested, StopSignals, locked
from margrave.training.metrics import MetricsLog
from margrave.training.schedule import learning_rate_factor
from margrave.training.state import Position, Training
from margrave.training.transfer import BatchesAhead, Readback
from margrave.training.unused_parameters import check_gradients, translated


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

    Ctrl-C and SIGTERM finish the step and write a checkpoint first; a second Ctrl-C does not.

    A process that no longer takes part ends the others, see `RankWatch`.

    Raises:
        ValueError: nothing to resume; too many unreadable images; another process trains there.
        NonFiniteLossError: the loss or its gradient is infinite or NaN.
        RankError: communication with a process has failed that has not answered for long.
        StopRequested: a signal asked for it.
    """
    with ExitStack() as stack:
        if training.world.rank == 0:
            stack.enter_context(locked(folder))
        stop = stack.enter_context(StopSignals())
        watch = RankWatch(
            training.world,
            training.settings.rank_silence_seconds,
            training.settings.rank_stall_seconds,
            "training.rank_{}_seconds",
        )
        stack.enter_context(watch)
        _fit(training, folder, stop, watch, resume, resumed, after_epoch, report)


def _fit(
    training: Training,
    folder: Path,
    stop: StopSignals,
    watch: RankWatch,
    resume: bool,
    resumed: Callable[[Position], None],
    after_epoch: Callable[[Training, MetricsLog], None],
    report: Callable[[StepReport], None],
) -> None:
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
            batches = BatchesAhead(training.loader, training.fabric.device)
            outlook = _synchronize(training, batches.peek(), stop=stop).wait()
            while batches.peek() is not None:
                watch.step = training.position.step + 1
                _note_unreadable(training, batches.peek(), outlook, log)
                due = time.monotonic() - last_save >= settings.checkpoint_seconds
                sizes = outlook.sizes
                asked = {"due": due, "stop": stop}
                # Batch norm cannot learn from a single image.
                if min(sizes) > 1:
                    values, outlook = _train_step(training, batches, sizes, folder, **asked)
                    _record(training, log, values, sum(sizes), started, report)
                else:
                    batches.next()
                    batches.fetch()
                    outlook = _synchronize(training, batches.peek(), **asked).wait()
                position = training.position
                training.position = Position(epoch, position.batch + 1, position.step + 1)
                if outlook.checkpoint_due or outlook.stop:
                    training.save(folder, log.length)
                    last_save = time.monotonic()
                if outlook.stop:
                    raise StopRequested
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


@dataclass(frozen=True)
class _Outlook:
    """What every rank knows after a step.

    Attributes:
        sizes: how many images each rank brings to the next step.
        any_unreadable: whether any of them met new images that it could not read.
        checkpoint_due: whether any of them wants a checkpoint now.
        stop: whether any of them was asked to stop.
        sums: the ranks' values of the step, added up.
        values: those that are the same on every rank.
    """

    sizes: tuple[int, ...]
    any_unreadable: bool
    checkpoint_due: bool
    stop: bool
    sums: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Synchronization:
    """An `_Outlook` on its way to the host: the one thing in a step that it waits for."""

    readback: Readback
    ranks: int
    sums: int

    def wait(self) -> _Outlook:
        numbers = self.readback.wait()
        width = self.sums + 4
        rows = [numbers[rank * width : (rank + 1) * width] for rank in range(self.ranks)]
        sizes, unreadable, due, stop = zip(*(row[self.sums :] for row in rows), strict=True)
        return _Outlook(
            sizes=tuple(int(size) for size in sizes),
            any_unreadable=any(unreadable),
            checkpoint_due=any(due),
            stop=any(stop),
            sums=tuple(
                sum(column) for column in zip(*(row[: self.sums] for row in rows), strict=True)
            ),
            values=tuple(numbers[self.ranks * width :]),
        )


def _synchronize(
    training: Training,
    coming: Batch | None,
    *,
    due: bool = False,
    stop: StopSignals,
    sums: Sequence[Tensor] = (),
    values: Sequence[Tensor] = (),
) -> _Synchronization:
    """Start telling all ranks, and every host, what came of a step and what the next one is.

    Args:
        training: the parts.
        coming: this rank's batch of the next step.
        due: whether this rank wants a checkpoint.
        stop: whether it was asked to stop.
        sums: () each, to be added up over ranks.
        values: () each, equal on every rank.
    """
    world, zero = training.world, training.head.weight.new_zeros(())
    fresh = [] if coming is None else _fresh(training, coming)
    size = 0 if coming is None else len(coming.labels)
    asked = size, len(fresh), int(due), int(stop.requested)
    # Filled in on the device: numbers copied to it would make the host wait.
    own = [*sums, *(zero.new_full((), number) for number in asked)]
    row = torch.stack([value.detach().to(zero) for value in own])
    rows = gather_rows(row[None], [1] * world.size, world).flatten()
    same = [value.detach().to(zero)[None] for value in values]
    return _Synchronization(Readback(torch.cat([rows, *same])), world.size, len(sums))


def _fresh(training: Training, batch: Batch) -> list[Unreadable]:
    return [image for image in batch.unreadable if image.name not in training.unreadable]


def _seed(training: Training) -> None:
    """Draws of a step (dropout) depend on the seed, the step and the rank alone."""
    words = [training.settings.seed, training.position.step, training.world.rank]
    mixed = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(mixed >> np.uint64(1)))


def _train_step(
    training: Training,
    batches: BatchesAhead,
    sizes: Sequence[int],
    folder: Path,
    *,
    due: bool,
    stop: StopSignals,
) -> tuple[dict[str, float], _Outlook]:
    """One optimiser step over the batch of all ranks, each in micro-batches.

    The gradient is that of the mean over all images, however they are shared out. The host waits
    for the device once, before the update, and only after the next batch is on its way: so what is
    not finite never reaches the weights.
    """
    settings, head, world = training.settings, training.head, training.world
    _seed(training)
    learning_rate = _set_learning_rate(training)
    batch = batches.next()
    assert batch is not None
    total, scale = sum(sizes), 1.0 if training.loss_scale is None else training.loss_scale.scale
    # No part is of a single image, from which batch norm could not learn.
    sections = min(settings.accumulate, min(sizes) // 2)
    parts = zip(
        *(tensor.tensor_split(sections) for tensor in (batch.images, batch.labels, batch.indices)),
        strict=True,
    )
    embedded, losses = [], []
    for number, (pixels, labels, indices) in enumerate(parts):
        images = normalise(pixels).to(training.precision.dtype)
        if not settings.channels_last:
            images = images.contiguous()
        # Only the last part's backward pass averages the backbone's gradient over ranks.
        with training.fabric.no_backward_sync(training.backbone, enabled=number + 1 < sections):
            with training.precision.autocast(images.device.type), translated(training.network):
                embeddings = training.backbone(images)
                momentum = None if training.encoder is None else training.encoder(images)
            loss = head(
                embeddings,
                labels,
                sample_indices=indices,
                momentum_embeddings=momentum,
                new_step=number == 0,
                reduction="none",
            )
            # The backbone's gradient is averaged over ranks, hence their number.
            training.fabric.backward(loss.sum() * (scale * world.size / total))
        embedded.append(embeddings.detach())
        losses.append(loss.detach())

    parameters = list(training.network.parameters())
    waits_for_all = settings.strategy == "ddp" and settings.find_unused_parameters is False
    if world.size > 1 and waits_for_all:
        # Before ranks wait for each other again: some would still average such a gradient.
        check_gradients(training.network, parameters)
    average_(training.average_buffers(), world)
    of_head = [p for p in head.parameters() if p.requires_grad]
    gradient_norm = clip_gradients(
        parameters,
        settings.clip_norm,
        split=of_head,
        world=head.world,
        scale=scale,
    )
    embeddings = torch.cat(embedded).to(head.weight.dtype)
    sums = [torch.cat(losses).sum(), embeddings.norm(dim=1).sum()]
    scalars = head.scalars() if _is_logged(training) else {}
    batches.fetch()
    outlook = _synchronize(
        training,
        batches.peek(),
        due=due,
        stop=stop,
        sums=sums,
        values=[gradient_norm, *scalars.values()],
    ).wait()
    loss_sum, norm_sum = outlook.sums
    if not math.isfinite(loss_sum):
        raise diagnose_loss(training, embeddings, batch.labels, batch.indices, folder)
    _update(training, math.isfinite(outlook.values[0]), folder)
    values = {
        "loss": loss_sum / total,
        "learning_rate": learning_rate,
        "gradient_norm": outlook.values[0],
        "feature_norm": norm_sum / total,
    }
    if training.loss_scale is not None:
        values["loss_scale"] = training.loss_scale.scale
        values["skipped_steps"] = training.loss_scale.skipped_steps
    for (name, buffer), value in zip(scalars.items(), outlook.values[1:], strict=True):
        values[name] = value if buffer.is_floating_point() else int(value)
    return values, outlook


def _set_learning_rate(training: Training) -> float:
    settings = training.settings
    epoch = training.position.step / training.steps_per_epoch
    factor = learning_rate_factor(settings.schedule, epoch, settings.epochs)
    learning_rate = settings.optimizer.learning_rate * factor
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate
    if settings.optimizer.centres_in_backward:
        training.head.learning_rate = learning_rate
    return learning_rate


def _update(training: Training, finite: bool, folder: Path) -> None:
    """Move the weights, unless the gradient is not finite: a scaled loss is then scaled less."""
    scale = training.loss_scale
    if finite:
        training.optimizer.step()
        for follower in (training.average, training.encoder):
            if follower is not None:
                follower.follow(training.network)
        if scale is not None:
            scale.succeeded()
    else:
        if scale is not None:
            scale.overflowed()
        if scale is None or scale.exhausted:
            raise diagnose_gradient(training, folder)
    training.optimizer.zero_grad()


def _is_logged(training: Training) -> bool:
    """Whether the step under way is: every few, the first and the last of each epoch too."""
    step = training.position.step + 1
    ends_epoch = step % training.steps_per_epoch == 0
    return step == 1 or step % training.settings.log_steps == 0 or ends_epoch


def _note_unreadable(
    training: Training, batch: Batch | None, outlook: _Outlook, log: MetricsLog
) -> None:
    """What no rank could read is known to all of them, and logged, before the step."""
    if not outlook.any_unreadable:
        return
    own = [] if batch is None else _fresh(training, batch)
    images = [image for images in gather_objects(own, training.world) for image in images]
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
    if _is_logged(training):
        log.write(
            "training",
            step,
            {
                "epoch": step / training.steps_per_epoch,
                **values,
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
