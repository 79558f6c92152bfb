"""Examines a run: its training curve, settings, images and model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from margrave.config import RunConfig
from margrave.data import FaceImages, ReadableImages, open_source
from margrave.doctor.data import examine_images, sample_identities
from margrave.doctor.embedding_checks import check_collapse, check_quality
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.image_checks import MAX_EXAMPLES, MIN_SIDE, near_duplicates
from margrave.doctor.label_noise import check_label_noise
from margrave.doctor.measurements import Measurements, measure_images
from margrave.faces import Detector
from margrave.inference import load_embedder
from margrave.losses import create as create_loss
from margrave.progress import Progress
from margrave.runs import RunFolder

MIN_STEPS = 5
"""Minimum number of logged steps for a verdict on the training curve."""
MIN_LOSS_DROP = 0.03
"""Relative drop above which the loss counts as falling."""
MAX_STEP_SIZE, MIN_STEP_SIZE = 50.0, 1e-4
"""Step sizes (learning rate times gradient norm): training is unstable if the largest one is above
the first number, and the weights hardly change if the median is below the second."""
MAX_FEATURE_NORM_RATIO = 20.0
"""Ratio of the largest to the smallest mean feature norm above which training is unstable."""


def examine_run(
    folder: str | Path,
    max_images: int = 2000,
    workers: int = 4,
    trust_code: bool = False,
    progress: Progress = lambda done, total: None,
    detector: Detector | None = None,
) -> list[Finding]:
    """Find the faults of a run, worst first.

    Args:
        folder: the run's folder.
        max_images: maximum number of images to examine in the training set and in each evaluation
            set. Evaluation images are compared with up to ten times as many training images.
        workers: number of threads.
        trust_code: import and run the custom code that the run's files name.
        progress: called with (images done, total images).
        detector: detects landmarks, to check the alignment (see ``available_detector``); without
            one, the check is rough.

    Raises:
        ValueError: the folder is not a run's folder.
    """
    run = RunFolder(Path(folder))
    config = run.read_config(trust_code=trust_code)
    images = open_source(config.data.train, labeled=True)
    metrics = run.read_metrics()
    min_side = min(MIN_SIDE, config.data.image_size)
    findings = list(check_curve(metrics, config, len(images), len(images.class_names)))
    findings += check_scale(config, len(images.class_names))
    findings += [
        finding
        for finding in examine_images(
            images, max_images, workers, progress, min_side=min_side, detector=detector
        )
        if finding.severity != "note"
    ]
    findings += check_leaks(config, images, max_images, workers)
    if run.model.is_file():
        embedder = load_embedder(folder, trust_code=trust_code)
        findings += check_collapse(embedder, images)
        # MagFace uses the feature norm itself, AdaFace its running statistics.
        loss_reads_norm = config.loss["kind"] == "magface"
        loss_reads_norm |= "feature_norm" in create_loss(config.loss).needs
        findings += check_quality(embedder, images, loss_reads_norm)
        if run.checkpoint is not None:
            findings += check_label_noise(run.checkpoint, embedder, images, max_images)
    return ranked(findings)


def check_curve(
    metrics: list[dict[str, Any]], config: RunConfig, num_images: int, num_classes: int
) -> Iterator[Finding]:
    """Check whether the loss is finite and falls, and whether training is finished.

    Args:
        metrics: the logged lines of the run's metrics file, in their order.
        config: the run's configuration.
        num_images: number of training images.
        num_classes: number of training identities.
    """
    # Training logs "stopped" only after a non-finite loss. The reason consists of the cause and a
    # remedy; the remedy below replaces the latter.
    if metrics and metrics[-1]["kind"] == "stopped":
        yield Finding(
            fault="non_finite_loss",
            severity="serious",
            message=str(metrics[-1].get("reason", "training stopped")).partition("\n  remedy")[0],
            remedy="lower training.optimizer.learning_rate, raise "
            "training.schedule.warmup_epochs, set training.clip_norm to 5, or set "
            "training.precision to float32",
        )
        return
    steps = [line for line in metrics if line["kind"] == "training"]
    if not steps:
        yield Finding(
            fault="no_curve",
            severity="warning",
            message="the run has no training steps yet",
            remedy="train it: margrave train --resume FOLDER",
        )
        return
    # The metrics file contains None in place of infinity and NaN. In float16 (with a loss scale),
    # infinite gradients are normal, because their steps are skipped.
    non_finite = [
        line
        for line in steps
        if line["loss"] is None
        or ("loss_scale" not in line and line.get("gradient_norm", 0.0) is None)
    ]
    if non_finite:
        yield Finding(
            fault="non_finite_loss",
            severity="serious",
            message=f"the loss or its gradient is infinite or NaN at step {non_finite[0]['step']}",
            remedy="lower training.optimizer.learning_rate or set training.clip_norm to 5",
        )
        return
    if len(steps) >= MIN_STEPS:
        yield from _check_convergence(steps, config, num_classes)
    unreadable = steps[-1].get("unreadable", 0)
    if unreadable > 0.01 * num_images:
        yield Finding(
            fault="unreadable_images",
            severity="serious",
            message=f"{unreadable} of {num_images} images could not be read and were skipped",
            remedy="download or convert them again, or remove them",
            share=unreadable / num_images,
        )
    # The logged epoch is a fractional number of finished epochs, so allow for rounding.
    epoch, epochs = steps[-1]["epoch"], config.training.epochs
    if epoch < epochs - 0.01:
        yield Finding(
            fault="unfinished",
            severity="note",
            message=f"training stopped after {epoch:.2f} of {epochs} epochs",
            remedy="continue with margrave train --resume FOLDER",
            share=0.0,
        )


def _check_convergence(
    steps: list[dict[str, Any]], config: RunConfig, num_classes: int
) -> Iterator[Finding]:
    """Check whether the loss falls; if not, find the most likely cause."""
    names = ("loss", "feature_norm", "learning_rate", "gradient_norm")
    values = np.array([[_float_or_nan(line.get(name)) for name in names] for line in steps])
    finite = values[np.isfinite(values).all(1)]
    if len(finite) < MIN_STEPS:
        return
    losses, feature_norms, learning_rates, gradient_norms = finite.T
    clip_norm = config.training.clip_norm
    quarter_medians = [float(np.median(quarter)) for quarter in np.array_split(losses, 4)]
    # The last loss is the median over the last tenth of the steps, but at least three.
    first_loss, last_loss = float(losses[0]), float(np.median(losses[-max(3, len(losses) // 10) :]))
    step_sizes = learning_rates * (
        np.minimum(gradient_norms, clip_norm) if clip_norm else gradient_norms
    )
    median_step_size, max_step_size = float(np.median(step_sizes)), float(step_sizes.max())
    norm_ratio = float(feature_norms.max() / max(feature_norms.min(), 1e-12))
    figures = {
        "first_loss": round(first_loss, 4),
        "last_loss": round(last_loss, 4),
        "highest_loss": round(float(losses.max()), 4),
        "median_step": float(f"{median_step_size:.3g}"),
        "highest_step": float(f"{max_step_size:.3g}"),
        "feature_norm_swing": float(f"{norm_ratio:.3g}"),
    }
    loss_summary = (
        f"the loss went from {first_loss:.2f} to {last_loss:.2f} (maximum {losses.max():.2f})"
    )
    # AdamW's steps hardly depend on the gradient norm.
    steps_too_small = config.training.optimizer.kind == "sgd" and median_step_size < MIN_STEP_SIZE
    # Compares the last quarter of the run with the second.
    is_flat = quarter_medians[3] > (1 - MIN_LOSS_DROP) * quarter_medians[1]
    # Without a margin, log(num_classes) is the loss of a model whose cosines to all classes are
    # equal.
    at_chance = last_loss > math.log(num_classes) and (
        is_flat or norm_ratio > MAX_FEATURE_NORM_RATIO
    )
    verdict = "no better than guessing" if at_chance else "hardly lower than at the start"
    if steps_too_small and last_loss > 0.5 * first_loss:
        yield Finding(
            fault="learning_rate_too_low",
            severity="serious",
            message=f"{loss_summary}: steps are too small to change the weights (learning rate "
            f"times gradient norm {median_step_size:.2g})",
            remedy=f"raise training.optimizer.learning_rate ({learning_rates.max():g}) until the "
            "loss falls within an epoch; 0.1 is usual for SGD",
            figures=figures,
        )
    elif not at_chance and (
        last_loss < math.log(num_classes) or first_loss - last_loss > MIN_LOSS_DROP * first_loss
    ):
        # The loss is below that of guessing, or has fallen.
        return
    elif max_step_size > MAX_STEP_SIZE or norm_ratio > MAX_FEATURE_NORM_RATIO:
        yield Finding(
            fault="learning_rate_too_high",
            severity="serious",
            message=f"{loss_summary}, {verdict}, while steps were large (learning rate times "
            f"gradient norm up to {max_step_size:.2g}) and mean feature norms varied by a factor "
            f"of {norm_ratio:.2g}",
            remedy=f"lower training.optimizer.learning_rate ({learning_rates.max():g}) tenfold, "
            "raise training.schedule.warmup_epochs, or set training.clip_norm to 5",
            figures=figures,
        )
    else:
        yield Finding(
            fault="stuck_loss",
            severity="serious",
            message=f"{loss_summary}, {verdict}",
            remedy="check labels and images (margrave doctor DATA), lower the margin or start "
            "without one, and try another learning rate",
            figures=figures,
        )


def _float_or_nan(value: object) -> float:
    """The value as a float; NaN if it is not a number."""
    return float(value) if isinstance(value, int | float) else math.nan


def check_scale(config: RunConfig, num_classes: int) -> Iterator[Finding]:
    """Check whether the scale is so low that even a perfect model has a large loss.

    For C identities, with all target cosines at 1 and all others at −1/(C − 1), the loss is
    log(1 + (C − 1)·e^{−s·C/(C − 1)}) (lower bound from NormFace, arXiv 1704.06369).
    """
    loss, scale = create_loss(config.loss), config.loss.get("scale")
    # The bound holds only for a softmax over cosines that are multiplied by this scale.
    bound_applies = (
        loss.normalized and not loss.contains_scale and loss.sigmoid_terms(num_classes) is None
    )
    if not isinstance(scale, int | float) or num_classes < 2 or not bound_applies:
        return
    lowest_loss = math.log1p((num_classes - 1) * math.exp(-scale * num_classes / (num_classes - 1)))
    if lowest_loss > 0.1:
        # The scale at which the lowest loss is about 0.01.
        min_scale = math.log((num_classes - 1) / 0.01) * (num_classes - 1) / num_classes
        yield Finding(
            fault="scale_too_low",
            severity="serious",
            message=f"with scale {scale:g} and {num_classes} identities even a perfect model has a "
            f"loss of {lowest_loss:.2f}, so the gradient never vanishes",
            remedy=f"set loss.scale to {max(8, math.ceil(min_scale))} or more; 64 is usual",
            figures={"scale": scale, "classes": num_classes, "lowest_loss": round(lowest_loss, 4)},
        )


def check_leaks(
    config: RunConfig, images: FaceImages, max_images: int, workers: int = 4
) -> Iterator[Finding]:
    """Check for evaluation images that are also in the training set.

    Args:
        config: the run's configuration, which names the evaluation sets.
        images: the training images.
        max_images: maximum number of images of each evaluation set. They are compared with up to
            ten times as many training images.
        workers: number of threads.
    """
    evaluation_sets: dict[str, ReadableImages] = {}
    for name, settings in config.evaluation.sets.items():
        if settings.is_bin:
            evaluation_sets[name] = open_source(str(settings.pairs_file))
        elif settings.images:
            evaluation_sets[name] = open_source(settings.images)
    if not evaluation_sets:
        return
    training_indices = sample_identities(np.asarray(images.labels), 10 * max_images)
    training_measured = measure_images(images, training_indices, workers)
    if len(training_measured) + len(training_measured.unreadable) < len(images):
        yield Finding(
            fault="leaks_looked_for_in_part",
            severity="note",
            message=f"evaluation images were compared with only {len(training_measured)} of "
            f"{len(images)} training images",
            remedy="compare them with more training images: set a larger --images",
            share=0.0,
        )
    for name, evaluation_images in evaluation_sets.items():
        labels = evaluation_images.labels
        evaluation_indices = (
            list(range(min(max_images, len(evaluation_images))))
            if labels is None
            else sample_identities(np.asarray(labels), max_images)
        )
        evaluation_measured = measure_images(evaluation_images, evaluation_indices, workers)
        pairs = near_duplicates(_concatenate(training_measured, evaluation_measured))
        # Keep the pairs of a training image and an evaluation image.
        num_training = len(training_measured)
        pairs = pairs[(pairs[:, 0] < num_training) & (pairs[:, 1] >= num_training)]
        leaked = np.unique(pairs[:, 1])
        if len(leaked):
            share = len(leaked) / len(evaluation_measured)
            yield Finding(
                fault="evaluation_leak",
                severity="serious" if share > 0.01 else "warning",
                message=f"{len(leaked)} of {len(evaluation_measured)} images of the evaluation set "
                f"{name!r} are also training images",
                remedy="remove the identities of these images from the training set, or split the "
                "data by identity",
                share=share,
                examples=tuple(
                    f"{images.name(int(training_measured.indices[first]))} = "
                    + evaluation_images.name(
                        int(evaluation_measured.indices[second - num_training])
                    )
                    for first, second in pairs[:MAX_EXAMPLES]
                ),
                figures={"images": len(leaked), "looked_at": len(evaluation_measured)},
            )


def _concatenate(first: Measurements, second: Measurements) -> Measurements:
    """Join the measurements of two image sets, without their records of unreadable images."""
    columns = (
        "indices",
        "sizes",
        "std",
        "colorfulness",
        "redness",
        "eye_contrasts",
        "hashes",
        "thumbnails",
    )
    joined = {
        name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in columns
    }
    return Measurements(**joined, unreadable={})
