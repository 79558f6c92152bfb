"""The doctor's round through a run: its curve, its settings, its images and its model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from margrave.config import RunConfig, read_run_config
from margrave.data import FaceImages, ReadableImages, open_images, read_pairs_bin
from margrave.doctor.data import drawn, examine_images
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.image_checks import SHOWN, SMALLEST_SIDE, near_duplicates
from margrave.doctor.measurements import Measurements, Progress, measure_images
from margrave.doctor.model import check_collapse, check_quality
from margrave.faces import Detector
from margrave.inference import load_embedder
from margrave.losses import create as create_loss
from margrave.training import read_metrics

STUCK = 0.03
LARGE_STEP, SMALL_STEP = 50.0, 1e-4
"""Learning rate times gradient norm: weights are thrown about, or stand still."""
LARGE_SWING = 20.0
"""Of the mean feature norm, from its lowest to its highest."""


def examine_run(
    folder: str | Path,
    most: int = 2000,
    workers: int = 4,
    trust_code: bool = False,
    progress: Progress = lambda done, total: None,
    detector: Detector | None = None,
) -> list[Finding]:
    """Everything that is wrong with a run, the worst first.

    Args:
        folder: of the run.
        most: look at this many training images, and of each evaluation set.
        workers: threads.
        trust_code: allow the run's files to name custom code, which is imported and run.
        progress: called with (images done, images in all).
        detector: finds the landmarks that alignment is judged by, see ``available_detector``.

    Raises:
        ValueError: the folder is not a run's.
    """
    folder = Path(folder)
    config = read_run_config(folder, trust_code=trust_code)
    images = open_images(config.data.train)
    curve = folder / "metrics.jsonl"
    lines = read_metrics(curve) if curve.is_file() else []
    smallest = min(SMALLEST_SIDE, config.data.image_size)
    found = list(check_curve(lines, config, len(images), len(images.class_names)))
    found += check_scale(config, len(images.class_names))
    found += [
        finding
        for finding in examine_images(
            images, most, workers, progress, smallest=smallest, detector=detector
        )
        if finding.severity != "note"
    ]
    found += check_leaks(config, images, most, workers)
    if (folder / "model.safetensors").is_file():
        embedder = load_embedder(folder, trust_code=trust_code)
        found += check_collapse(embedder, images)
        reads_norm = config.loss["kind"] == "magface"
        reads_norm |= "feature_norm" in create_loss(config.loss).needs
        found += check_quality(embedder, images, reads_norm)
    return ranked(found)


def check_curve(
    lines: list[dict[str, Any]], config: RunConfig, images: int, classes: int
) -> Iterator[Finding]:
    """Why the loss is stuck, rises, or is no number."""
    if lines and lines[-1]["kind"] == "stopped":
        yield Finding(
            fault="non_finite_loss",
            severity="serious",
            said=lines[-1]["reason"].partition("\n  remedy")[0],
            remedy="lower training.optimizer.learning_rate, lengthen schedule.warmup_epochs, set "
            "training.clip_norm (5), or use precision float32",
        )
        return
    steps = [line for line in lines if line["kind"] == "training"]
    if not steps:
        yield Finding(
            fault="no_curve",
            severity="warning",
            said="the run has no training steps yet",
            remedy="train it: margrave train --resume FOLDER",
        )
        return
    broken = [line for line in steps if line["loss"] is None or line["gradient_norm"] is None]
    if broken:
        yield Finding(
            fault="non_finite_loss",
            severity="serious",
            said=f"the loss or its gradient is no number from step {broken[0]['step']} on",
            remedy="lower training.optimizer.learning_rate or set training.clip_norm (5)",
        )
        return
    if len(steps) >= 5:
        yield from _check_fall(steps, config, classes)
    unreadable = steps[-1].get("unreadable", 0)
    if unreadable > 0.01 * images:
        yield Finding(
            fault="unreadable_images",
            severity="serious",
            said=f"{unreadable} of {images} images could not be read and were left out",
            remedy="fetch or convert them again, or remove them",
            share=unreadable / images,
        )
    epoch, epochs = steps[-1]["epoch"], config.training.epochs
    if epoch < epochs - 0.01:
        yield Finding(
            fault="unfinished",
            severity="note",
            said=f"stopped after {epoch:.2f} of {epochs} epochs",
            remedy="go on with margrave train --resume FOLDER",
            share=0.0,
        )


def _check_fall(steps: list[dict[str, Any]], config: RunConfig, classes: int) -> Iterator[Finding]:
    losses = np.array([line["loss"] for line in steps], float)
    norms = np.array([line["feature_norm"] for line in steps], float)
    rates = np.array([line["learning_rate"] for line in steps], float)
    gradients = np.array([line["gradient_norm"] for line in steps], float)
    limit = config.training.clip_norm
    quarters = [float(np.median(part)) for part in np.array_split(losses, 4)]
    first, last = float(losses[0]), float(np.median(losses[-max(3, len(losses) // 10) :]))
    moved = rates * (np.minimum(gradients, limit) if limit else gradients)
    step, highest = float(np.median(moved)), float(moved.max())
    swing = float(norms.max() / max(norms.min(), 1e-12))
    figures = {
        "first_loss": round(first, 4),
        "last_loss": round(last, 4),
        "highest_loss": round(float(losses.max()), 4),
        "median_step": float(f"{step:.3g}"),
        "highest_step": float(f"{highest:.3g}"),
        "feature_norm_swing": float(f"{swing:.3g}"),
    }
    curve = f"the loss went from {first:.2f} to {last:.2f} (at most {losses.max():.2f})"
    still = config.training.optimizer.kind == "sgd" and step < SMALL_STEP
    # What a model gets that gives everybody the same cosine, without any margin.
    flat = quarters[3] > (1 - STUCK) * quarters[1]
    blind = last > math.log(classes) and (flat or swing > LARGE_SWING)
    if still and last > 0.5 * first:
        yield Finding(
            fault="learning_rate_too_low",
            severity="serious",
            said=f"{curve}: steps are too small to move anything (rate times gradient norm "
            f"{step:.2g})",
            remedy=f"raise training.optimizer.learning_rate ({rates.max():g}) until the loss falls "
            "within an epoch; 0.1 is usual for SGD",
            figures=figures,
        )
    elif not blind and first - last > STUCK * first:
        return
    elif highest > LARGE_STEP or swing > LARGE_SWING:
        yield Finding(
            fault="learning_rate_too_high",
            severity="serious",
            said=f"{curve}, no better than guessing, while steps were large (rate times gradient "
            f"norm up to {highest:.2g}, feature norms within a factor of {swing:.2g})",
            remedy=f"lower training.optimizer.learning_rate ({rates.max():g}) tenfold, lengthen "
            "schedule.warmup_epochs, or set training.clip_norm (5)",
            figures=figures,
        )
    else:
        yield Finding(
            fault="stuck_loss",
            severity="serious",
            said=f"{curve}, no better than guessing",
            remedy="check labels and images (margrave doctor DATA), lower the margin or begin "
            "without one, and try another learning rate",
            figures=figures,
        )


def check_scale(config: RunConfig, classes: int) -> Iterator[Finding]:
    """A scale under which even a perfect model has a large loss.

    With every target at cosθ = 1 and every other at −1/(C − 1), the loss is
    log(1 + (C − 1)·e^{−s·C/(C − 1)}) (NormFace, arXiv 1704.06369, for the bound).
    """
    scale = config.loss.get("scale")
    if not isinstance(scale, int | float) or classes < 2 or not create_loss(config.loss).normalized:
        return
    floor = math.log1p((classes - 1) * math.exp(-scale * classes / (classes - 1)))
    if floor > 0.1:
        needed = math.log((classes - 1) / 0.01) * (classes - 1) / classes
        yield Finding(
            fault="scale_too_low",
            severity="serious",
            said=f"with scale {scale:g} and {classes} identities even a perfect model has a loss "
            f"of {floor:.2f}, and goes on being pushed",
            remedy=f"set loss.scale to {max(8, math.ceil(needed))} or more; 64 is usual",
            figures={"scale": scale, "classes": classes, "lowest_loss": round(floor, 4)},
        )


def check_leaks(
    config: RunConfig, images: FaceImages, most: int, workers: int = 4
) -> Iterator[Finding]:
    """Training images, or people, that the evaluation sets hold too."""
    sets: dict[str, ReadableImages] = {}
    for name, entry in config.evaluation.sets.items():
        if entry.is_bin:
            sets[name] = read_pairs_bin(str(entry.pairs_file))[1]
        elif entry.images:
            sets[name] = open_images(entry.images)
    if not sets:
        return
    trained = measure_images(images, drawn(np.asarray(images.labels), 10 * most), workers)
    if len(trained) + len(trained.unreadable) < len(images):
        yield Finding(
            fault="leaks_looked_for_in_part",
            severity="note",
            said=f"evaluation images were looked for among {len(trained)} of {len(images)} "
            "training images",
            remedy="a larger --images looks at more",
            share=0.0,
        )
    for name, other in sets.items():
        labels = getattr(other, "labels", None)
        chosen = (
            list(range(min(most, len(other))))
            if labels is None
            else drawn(np.asarray(labels), most)
        )
        judged = measure_images(other, chosen, workers)
        pairs = near_duplicates(_together(trained, judged))
        pairs = pairs[(pairs[:, 0] < len(trained)) & (pairs[:, 1] >= len(trained))]
        held = np.unique(pairs[:, 1])
        if len(held):
            share = len(held) / len(judged)
            yield Finding(
                fault="evaluation_leak",
                severity="serious" if share > 0.01 else "warning",
                said=f"{len(held)} of {len(judged)} images of the evaluation set {name!r} are "
                "among the training images",
                remedy="judge on people that were not trained on: remove them from the training "
                "set, or split by identity",
                share=share,
                examples=tuple(
                    f"{images.name(int(trained.indices[one]))} = "
                    f"{other.name(int(judged.indices[two - len(trained)]))}"
                    for one, two in pairs[:SHOWN]
                ),
                figures={"images": len(held), "looked_at": len(judged)},
            )


def _together(one: Measurements, other: Measurements) -> Measurements:
    columns = ("indices", "sizes", "deviation", "colour", "redness", "eyes", "hashes", "thumbnails")
    joined = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in columns}
    return Measurements(**joined, unreadable={})
