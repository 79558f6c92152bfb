"""The training loop, independent of the loss and the head."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from margrave.data import Batch, normalize
from margrave.distributed import RankWatch, average_, gather_objects
from margrave.training.adaptation import (
    adaptation_record,
    digest_of_examples,
    measure_adaptation,
    read_adaptation,
)
from margrave.training.checkpoint import latest_checkpoint, remove_checkpoints, remove_unfinished
from margrave.training.diagnosis import NonFiniteLossError, diagnose_gradient, diagnose_loss
from margrave.training.gradients import clip_gradients
from margrave.training.interruption import StopRequested, StopSignals, locked
from margrave.training.metrics import MetricsLog
from margrave.training.schedule import learning_rate_factor
from margrave.training.state import Position, TrainingState
from margrave.training.synchronization import SharedStatus, new_unreadable, synchronize
from margrave.training.transfer import PrefetchedBatches
from margrave.training.unused_parameters import check_gradients, explain_ddp_errors


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Progress after one optimizer step.

    Attributes:
        step: steps done so far, over all epochs.
        steps: the total number of steps when training ends.
        epoch: the current epoch, from 1.
        epochs: the number of epochs.
        epoch_step: the step within the epoch, from 1.
        epoch_steps: the number of steps in an epoch.
        loss: mean over the step's images.
        target_cosine: mean cosθ_y; None for a loss of inner products.
        images_per_second: training speed over all ranks.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    epoch_step: int
    epoch_steps: int
    loss: float
    target_cosine: float | None
    images_per_second: float


def fit(
    training: TrainingState,
    folder: Path,
    *,
    resume: bool = False,
    after_resume: Callable[[Position], None] = lambda position: None,
    after_epoch: Callable[[TrainingState, MetricsLog], bool | None] = lambda training, log: None,
    report: Callable[[StepReport], None] = lambda step: None,
) -> None:
    """Train until the last epoch, from the start or from a checkpoint.

    Args:
        training: the training state, see `set_up`.
        folder: the run's folder, for checkpoints and metrics.
        resume: continue from the folder's latest checkpoint.
        after_resume: called with the restored position if training resumes from a checkpoint.
        after_epoch: called after each epoch, before its checkpoint is written. If it returns True,
            training ends; every rank must return the same.
        report: called after each step.

    Ctrl-C and SIGTERM finish the step and write a checkpoint; a second Ctrl-C stops at once.

    If a process fails or hangs, the others end with an error, see `RankWatch`.

    Raises:
        ValueError: there is no checkpoint to resume from, there are too many unreadable images, or
            another process is training in the folder.
        NonFiniteLossError: the loss or its gradient is infinite or NaN.
        RankError: another process has failed.
        StopRequested: a signal stopped the training.
    """
    with ExitStack() as stack:
        if training.world.rank == 0:
            stack.enter_context(locked(folder))
        stop_signals = stack.enter_context(StopSignals())
        watch = RankWatch(
            training.world,
            silent_seconds=training.settings.rank_silence_seconds,
            stalled_seconds=training.settings.rank_stall_seconds,
            setting="training.rank_{}_seconds",
        )
        stack.enter_context(watch)
        _fit(training, folder, stop_signals, watch, resume, after_resume, after_epoch, report)


def _fit(
    training: TrainingState,
    folder: Path,
    stop_signals: StopSignals,
    watch: RankWatch,
    resume: bool,
    after_resume: Callable[[Position], None],
    after_epoch: Callable[[TrainingState, MetricsLog], bool | None],
    report: Callable[[StepReport], None],
) -> None:
    settings, is_first_rank = training.settings, training.world.rank == 0
    log_length = 0
    if is_first_rank:
        remove_unfinished(folder)
    if resume:
        checkpoint = latest_checkpoint(folder)
        if checkpoint is None:
            raise ValueError(f"{folder}: no checkpoint to resume from; start without --resume")
        log_length = training.load(checkpoint)
        after_resume(training.position)
    elif is_first_rank:
        remove_checkpoints(folder)
    log_folder = folder if is_first_rank else None
    log = MetricsLog(log_folder, settings.loggers, log_length, training.position.step)
    training.head.train()
    training.network.train()
    succeeded = False
    try:
        last_save = time.monotonic()
        for epoch in range(training.position.epoch, settings.epochs):
            training.sampler.start_at(epoch, training.position.batch)
            started = time.monotonic()
            batches = PrefetchedBatches(training.loader, training.fabric.device)
            status = synchronize(training, batches.peek(), stop_signals=stop_signals).wait()
            while batches.peek() is not None:
                watch.step = training.position.step + 1
                _record_unreadable(training, batches.peek(), status, log)
                checkpoint_due = time.monotonic() - last_save >= settings.checkpoint_seconds
                sizes = status.sizes
                rank_status = {"checkpoint_due": checkpoint_due, "stop_signals": stop_signals}
                # Batch norm needs two images on every rank; otherwise all ranks skip the batch.
                if min(sizes) > 1:
                    values, status = _train_step(training, batches, sizes, folder, **rank_status)
                    _record_step(training, log, values, sum(sizes), started, report)
                else:
                    batches.next()
                    batches.fetch()
                    status = synchronize(training, batches.peek(), **rank_status).wait()
                position = training.position
                training.position = Position(epoch, position.batch + 1, position.step + 1)
                if status.checkpoint_due or status.stop:
                    training.save(folder, log.length)
                    last_save = time.monotonic()
                if status.stop:
                    raise StopRequested
                started = time.monotonic()
            training.head.end_epoch()
            training.position = Position(epoch + 1, 0, training.position.step)
            _record_adaptation(training, log)
            should_end = after_epoch(training, log)
            training.save(folder, log.length)
            if should_end:
                break
        succeeded = True
    except NonFiniteLossError as error:
        log.write("stopped", training.position.step, {"reason": str(error)})
        raise
    finally:
        log.close(succeeded)


def _seed_step(training: TrainingState) -> None:
    """Seed torch for a step, so that dropout depends only on the seed, the step and the rank."""
    entropy = [training.settings.seed, training.position.step, training.world.rank]
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    # Shifted to 63 bits, which fit into a signed integer.
    torch.manual_seed(int(seed >> np.uint64(1)))


def _train_step(
    training: TrainingState,
    batches: PrefetchedBatches,
    sizes: Sequence[int],
    folder: Path,
    *,
    checkpoint_due: bool,
    stop_signals: StopSignals,
) -> tuple[dict[str, float], SharedStatus]:
    """Run one optimizer step on all ranks' batches; each rank splits its batch into micro-batches.

    The gradient is that of the mean loss over all images, however they are split over ranks and
    micro-batches. The host waits for the device once: after the copy of the next batch has started,
    and before the update, so that infinite or NaN values never reach the weights.

    Args:
        training: the training state.
        batches: this rank's batches; the next one is used, and the one after it is fetched.
        sizes: number of images in the batch of each rank.
        folder: the run's folder, for error messages.
        checkpoint_due: whether a checkpoint is due on this rank.
        stop_signals: this rank's stop signals.

    Returns:
        the step's values for the metrics, and the status of all ranks after the step.
    """
    settings, head, world = training.settings, training.head, training.world
    _seed_step(training)
    learning_rate = _set_learning_rate(training)
    batch = batches.next()
    assert batch is not None
    num_images = sum(sizes)
    scale = 1.0 if training.loss_scale is None else training.loss_scale.scale
    # Every micro-batch has at least two images, which batch norm needs.
    num_micro_batches = min(settings.accumulate, min(sizes) // 2)
    micro_batches = zip(
        *(
            tensor.tensor_split(num_micro_batches)
            for tensor in (batch.images, batch.labels, batch.indices)
        ),
        strict=True,
    )
    all_embeddings, losses, cosines = [], [], []
    for index, (pixels, labels, indices) in enumerate(micro_batches):
        images = normalize(pixels).to(training.precision.dtype)
        if not settings.channels_last:
            images = images.contiguous()
        # Only the last micro-batch's backward pass averages the backbone's gradient over ranks.
        is_last = index + 1 == num_micro_batches
        with training.fabric.no_backward_sync(training.backbone, enabled=not is_last):
            with (
                training.precision.autocast(images.device.type),
                explain_ddp_errors(training.network),
            ):
                embeddings = training.backbone(images)
                encoder = training.encoder
                momentum_embeddings = None if encoder is None else encoder(images)
            loss = head(
                embeddings,
                labels,
                sample_indices=indices,
                momentum_embeddings=momentum_embeddings,
                new_step=index == 0,
                reduction="none",
            )
            # DDP and FSDP average over ranks; the factor `world.size` turns the mean into a sum.
            training.fabric.backward(loss.sum() * (scale * world.size / num_images))
        all_embeddings.append(embeddings.detach())
        losses.append(loss.detach())
        cosines.append(head.target_cosines)

    parameters = list(training.network.parameters())
    expects_all_gradients = settings.strategy == "ddp" and settings.find_unused_parameters is False
    if world.size > 1 and expects_all_gradients:
        # Check now, because the next collective would wait for missing gradients.
        check_gradients(training.network, parameters)
    average_(training.running_stats(), world)
    head_parameters = [p for p in head.parameters() if p.requires_grad]
    gradient_norm = clip_gradients(
        parameters,
        settings.clip_norm,
        replicated=[p for p in head_parameters if p is head.sigmoid_bias],
        row_sharded=[p for p in head_parameters if p is not head.sigmoid_bias],
        world=head.world,
        scale=scale,
    )
    embeddings = torch.cat(all_embeddings).to(head.weight.dtype)
    sums = [torch.cat(losses).sum(), embeddings.norm(dim=1).sum(), torch.cat(cosines).sum()]
    scalars = head.scalars() if _is_logged(training) else {}
    batches.fetch()
    if _ends_epoch(training):
        training.adaptation = measure_adaptation(head, embeddings, batch.labels)
    status = synchronize(
        training,
        batches.peek(),
        checkpoint_due=checkpoint_due,
        stop_signals=stop_signals,
        sums=sums,
        values=[gradient_norm, *scalars.values()],
    ).wait()
    loss_sum, norm_sum, cosine_sum = status.sums
    if not math.isfinite(loss_sum):
        raise diagnose_loss(training, embeddings, batch.labels, batch.indices, folder)
    _update_weights(training, math.isfinite(status.values[0]), folder)
    values = {
        "loss": loss_sum / num_images,
        "learning_rate": learning_rate,
        "gradient_norm": status.values[0],
        "feature_norm": norm_sum / num_images,
    }
    if head.loss.normalized:
        values["target_cosine"] = cosine_sum / num_images
    if training.loss_scale is not None:
        values["loss_scale"] = training.loss_scale.scale
        values["skipped_steps"] = training.loss_scale.skipped_steps
    for (name, scalar), value in zip(scalars.items(), status.values[1:], strict=True):
        values[name] = value if scalar.is_floating_point() else int(value)
    return values, status


def _set_learning_rate(training: TrainingState) -> float:
    """Set the learning rate of the current step, and return it."""
    settings = training.settings
    epoch = training.epochs_after()
    factor = learning_rate_factor(settings.schedule, epoch, settings.epochs)
    learning_rate = settings.optimizer.learning_rate * factor
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate
    if settings.optimizer.centers_in_backward:
        training.head.learning_rate = learning_rate
    return learning_rate


def _update_weights(training: TrainingState, is_finite: bool, folder: Path) -> None:
    """Update the weights if the gradient is finite; else lower the loss scale or raise an error."""
    loss_scale = training.loss_scale
    if is_finite:
        training.optimizer.step()
        for moving_average in (training.average, training.encoder):
            if moving_average is not None:
                moving_average.update(training.network)
        if loss_scale is not None:
            loss_scale.record_success()
    else:
        if loss_scale is not None:
            loss_scale.record_overflow()
        if loss_scale is None or loss_scale.exhausted:
            raise diagnose_gradient(training, folder)
    training.optimizer.zero_grad()


def _is_logged(training: TrainingState) -> bool:
    """Whether to log the current step: the first, an epoch's last, or a multiple of `log_steps`."""
    step = training.position.step + 1
    return step == 1 or step % training.settings.log_steps == 0 or _ends_epoch(training)


def _ends_epoch(training: TrainingState) -> bool:
    return training.position.batch + 1 == training.steps_per_epoch


def _record_adaptation(training: TrainingState, log: MetricsLog) -> None:
    """Log how the loss adapted in the epoch's last step, unless that step was skipped."""
    measured, training.adaptation = training.adaptation, {}
    if measured and training.world.rank == 0:
        head, position = training.head, training.position
        class_sizes = np.bincount(training.images.images.labels, minlength=head.num_classes)
        values = {"epoch": position.epoch, **adaptation_record(measured, head, class_sizes)}
        record = read_adaptation(values)
        if record is not None and record.classes:
            values["examples"] = digest_of_examples(record, training.images.images)
        log.write("adaptation", position.step, values)


def _record_unreadable(
    training: TrainingState, batch: Batch | None, status: SharedStatus, log: MetricsLog
) -> None:
    """Share the batch's new unreadable images with all ranks and log them, before its step.

    Raises:
        ValueError: there are more unreadable images than the settings allow.
    """
    if not status.any_unreadable:
        return
    rank_unreadable = [] if batch is None else new_unreadable(training, batch)
    for unreadable_images in gather_objects(rank_unreadable, training.world):
        for image in unreadable_images:
            training.unreadable[image.name] = image.reason
            values = {"name": image.name, "reason": image.reason}
            log.write("unreadable", training.position.step, values)
    limit = training.settings.maximum_unreadable
    if len(training.unreadable) > limit:
        examples = "\n  ".join(list(training.unreadable.values())[:10])
        raise ValueError(
            f"{len(training.unreadable)} images cannot be read, more than "
            f"training.maximum_unreadable = {limit}; fix or remove them, or raise the limit:\n"
            f"  {examples}"
        )


def _record_step(
    training: TrainingState,
    log: MetricsLog,
    values: dict[str, float],
    num_images: int,
    started: float,
    report: Callable[[StepReport], None],
) -> None:
    """Report a finished step, and log its values if the step is logged.

    Args:
        training: the training state; its position is that before the step.
        log: the metrics log.
        values: the values that `_train_step` returned.
        num_images: number of images of the step, over all ranks.
        started: the value of `time.monotonic` when the step started.
        report: receives the report.
    """
    settings, position = training.settings, training.position
    step = position.step + 1
    images_per_second = num_images / max(time.monotonic() - started, 1e-9)
    # Steps until training ends, including this one.
    remaining = (settings.epochs - position.epoch) * training.steps_per_epoch - position.batch
    if _is_logged(training):
        log.write(
            "training",
            step,
            {
                "epoch": training.epochs_after(1),
                **values,
                "images_per_second": round(images_per_second, 1),
                "unreadable": len(training.unreadable),
            },
        )
    report(
        StepReport(
            step=step,
            steps=position.step + remaining,
            epoch=position.epoch + 1,
            epochs=settings.epochs,
            epoch_step=position.batch + 1,
            epoch_steps=training.steps_per_epoch,
            loss=values["loss"],
            target_cosine=values.get("target_cosine"),
            images_per_second=images_per_second,
        )
    )
