"""Examines a data set or a verification set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from margrave.data import (
    FaceImages,
    ImageSource,
    PairList,
    ReadableImages,
    RecordImages,
    ShardImages,
    damaged_shards,
    open_source,
)
from margrave.doctor.alignment import check_alignment
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.image_checks import (
    MAX_EXAMPLES,
    MIN_SIDE,
    check_color,
    check_duplicates,
    check_reading,
    check_sizes,
    near_duplicates,
)
from margrave.doctor.measurements import Measurements, measure_images
from margrave.faces import Detector
from margrave.progress import Progress


def examine_images(
    images: ImageSource,
    max_images: int = 20_000,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
    seed: int = 0,
    min_side: int = MIN_SIDE,
    detector: Detector | None = None,
) -> list[Finding]:
    """Find the faults of a labeled data set, worst first.

    Args:
        images: the data set, or its path.
        max_images: maximum number of images to examine. In a larger set, randomly chosen identities
            are examined, with all their images.
        workers: number of threads.
        progress: called with (images done, total images).
        seed: seed of the random choice of identities.
        min_side: side length in pixels below which an image counts as too small.
        detector: detects landmarks, to check the alignment (see ``available_detector``); without
            one, the check is rough.
    """
    images = open_source(images, labeled=True)
    labels = np.asarray(images.labels)
    chosen = sample_identities(labels, max_images, seed)
    measured = measure_images(images, chosen, workers, progress)
    findings = [
        *check_labels(images),
        *_check_images(measured, images, min_side, detector, progress),
    ]
    findings += check_duplicates(
        measured, images.name, labels, lambda label: str(images.class_names[label])
    )
    if isinstance(images, ShardImages) and Path(images.root, "shards.json").is_file():
        findings += _check_shards(images)
    return ranked(findings)


def examine_pairs(
    images: ReadableImages,
    pairs: PairList,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
    detector: Detector | None = None,
) -> list[Finding]:
    """Find the faults of a verification set, worst first.

    Args:
        images: the images that the pairs refer to.
        pairs: the pairs of images.
        workers: number of threads.
        progress: called with (images done, total images).
        detector: detects landmarks, to check the alignment (see ``available_detector``); without
            one, the check is rough.
    """
    indices = np.unique(np.concatenate([pairs.first, pairs.second]))
    measured = measure_images(images, indices.tolist(), workers, progress)
    findings = [
        *check_pairs(pairs, measured),
        *_check_images(measured, images, MIN_SIDE, detector, progress),
    ]
    return ranked(findings)


def sample_identities(labels: np.ndarray, max_images: int, seed: int = 0) -> list[int]:
    """Choose identities at random and return the indices of their images, at most `max_images`.

    Args:
        labels: (N,) labels of all images.
        max_images: maximum number of indices. A set that is not larger is chosen completely.
        seed: seed of the random choice.
    """
    if len(labels) <= max_images:
        return list(range(len(labels)))
    order = np.random.default_rng(seed).permutation(labels.max() + 1)
    sizes = np.bincount(labels)[order]
    # As many identities as fit, but at least one; if that one is too large, part of its images.
    num_chosen = max(1, int(np.searchsorted(np.cumsum(sizes), max_images, side="right")))
    return np.flatnonzero(np.isin(labels, order[:num_chosen]))[:max_images].tolist()


def _check_images(
    measured: Measurements,
    images: ReadableImages,
    min_side: int,
    detector: Detector | None,
    progress: Progress,
) -> Iterator[Finding]:
    """Make the checks that need no labels: readability, color order, alignment and size."""
    yield from check_reading(measured, images.name)
    yield from check_color(measured, images.name)
    yield from check_alignment(measured, images, detector, progress)
    yield from check_sizes(measured, images.name, min_side)


def check_labels(images: FaceImages) -> Iterator[Finding]:
    """Check for gaps in the labels, a wrong number of identities, and unusual class sizes."""
    labels = np.asarray(images.labels)
    sizes = np.bincount(labels, minlength=len(images.class_names))
    # The names of all identities, including those with too few images to be used.
    names = [*images.class_names, *images.left_out]
    if isinstance(images, RecordImages) or (isinstance(images, ShardImages) and images.scanned):
        # In record files and in shards without an index, the identity names are integer labels.
        yield from _check_label_gaps(np.sort(np.array([int(name) for name in names])))
    if isinstance(images, RecordImages) and images.num_classes not in (None, len(names)):
        yield Finding(
            fault="wrong_class_count",
            severity="serious",
            message=f"the property file states {images.num_classes} identities, but the records "
            f"contain {len(names)}",
            remedy="download the set again, or correct the first number of the property file",
            figures={"property": images.num_classes, "records": len(names)},
        )
    single_share = float((sizes < 2).mean())
    if single_share > 0.2:
        yield Finding(
            fault="single_images",
            severity="serious" if single_share > 0.8 else "warning",
            message=f"{100 * single_share:.0f} % of the {len(sizes)} identities have a single "
            "image",
            remedy="leave them out (minimum_images=2): a single image shows no variation within an "
            "identity, and KappaFace cannot estimate a concentration from it",
            share=single_share,
            figures=histogram(sizes),
        )
    largest, median = int(sizes.max()), float(np.median(sizes))
    if largest > 50 * median:
        yield Finding(
            fault="dominant_identity",
            severity="warning",
            message=f"the largest identity, {images.class_names[int(sizes.argmax())]}, has "
            f"{largest} images; the median is {median:.0f}",
            remedy="look at its images: it may be a folder of unknown people",
            share=largest / len(labels),
            figures=histogram(sizes),
        )
    yield Finding(
        fault="class_sizes",
        severity="note",
        message=f"{len(labels)} images of {len(sizes)} identities: {sizes.min()} to {largest} "
        f"per identity, median {median:.0f}; the largest tenth of the identities has "
        f"{100 * np.sort(sizes)[-max(1, len(sizes) // 10) :].sum() / len(labels):.0f} % of the "
        "images",
        remedy="none needed",
        share=0.0,
        figures=histogram(sizes),
    )


def _check_label_gaps(file_labels: np.ndarray) -> Iterator[Finding]:
    """Check for unused labels.

    Args:
        file_labels: (C,) the labels that occur in the set's files, ascending.
    """
    num_missing = int(file_labels[-1]) + 1 - len(file_labels)
    if not num_missing:
        return
    # True if all missing labels are below the first one.
    shifted = num_missing == file_labels[0]
    previous = np.concatenate([[-1], file_labels[:-1]])
    after_gaps = np.flatnonzero(file_labels - previous > 1)[:MAX_EXAMPLES]
    gap_starts = ", ".join(str(previous[index] + 1) for index in after_gaps)
    message = f"labels begin at {file_labels[0]} instead of 0"
    if not shifted:
        message = (
            f"{num_missing} labels between 0 and {file_labels[-1]} have no images; gaps begin at "
            f"{gap_starts}"
        )
    yield Finding(
        fault="shifted_labels" if shifted else "label_gaps",
        severity="warning",
        message=message,
        remedy="pack the set again (margrave pack numbers identities from 0); Margrave renumbers "
        "labels when reading, but other programs may count classes wrongly or index out of range",
        share=num_missing / (int(file_labels[-1]) + 1),
        figures={
            "missing": num_missing,
            "first": int(file_labels[0]),
            "last": int(file_labels[-1]),
        },
    )


def histogram(sizes: np.ndarray) -> dict[str, int]:
    """Count identities by size: range of image counts -> number of identities.

    Each range is twice as wide as the previous one. Empty ranges are omitted.

    >>> histogram(np.array([1, 1, 3, 9]))
    {'1': 2, '2-3': 1, '8-15': 1}
    """
    identity_counts: dict[str, int] = {}
    low = 1
    while low <= sizes.max(initial=0):
        count = int(((sizes >= low) & (sizes < 2 * low)).sum())
        if count:
            identity_counts[str(low) if low == 1 else f"{low}-{2 * low - 1}"] = count
        low *= 2
    return identity_counts


def _check_shards(images: ShardImages) -> Iterator[Finding]:
    """Check the shards against the checksums in ``shards.json``."""
    damaged = list(damaged_shards(images.root))
    if damaged:
        yield Finding(
            fault="damaged_shards",
            severity="serious",
            message=f"{len(damaged)} of {len(images.shards)} shards have changed since packing",
            remedy="download or copy them again",
            share=1.0,
            examples=tuple(damaged[:MAX_EXAMPLES]),
            figures={"damaged": len(damaged), "shards": len(images.shards)},
        )


def check_pairs(pairs: PairList, measured: Measurements) -> Iterator[Finding]:
    """Check for labels that are nearly all the same, contradictory labels, and identical images."""
    same = np.asarray(pairs.same, bool)
    genuine_share = float(same.mean())
    if not 0.05 < genuine_share < 0.95:
        yield Finding(
            fault="one_sided_pairs",
            severity="serious",
            message=f"{100 * genuine_share:.0f} % of the {len(same)} pairs are genuine",
            remedy="accuracy is meaningful only with genuine and impostor pairs; margrave pack "
            "--pairs creates a new set",
            figures={"share_same": round(genuine_share, 4), "pairs": len(same)},
        )
    position_of = {int(index): position for position, index in enumerate(measured.indices)}
    duplicates = {tuple(positions) for positions in near_duplicates(measured).tolist()}
    contradicted, num_identical = [], 0
    for pair, (first, second) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        # Unreadable images have no position. The values -1 and -2 differ, so that two unreadable
        # images never count as identical.
        positions = sorted((position_of.get(int(first), -1), position_of.get(int(second), -2)))
        if positions[0] == positions[1] or tuple(positions) in duplicates:
            num_identical += 1
            if not same[pair]:
                contradicted.append(pair)
    if contradicted:
        yield Finding(
            fault="contradicted_pairs",
            severity="serious",
            message=f"{len(contradicted)} pairs compare an image with itself but are labeled as "
            "different people: the labels are reversed or belong to other pairs",
            remedy="create the set again, and check that images 2k and 2k + 1 form pair k (all "
            "counted from 0), and that the labels are in the same order",
            share=len(contradicted) / len(same),
            examples=tuple(f"pair {pair}" for pair in contradicted[:MAX_EXAMPLES]),
            figures={"contradicted": len(contradicted), "pairs": len(same)},
        )
    if num_identical > 0.05 * len(same):
        yield Finding(
            fault="identical_pairs",
            severity="warning",
            message=f"{num_identical} of {len(same)} pairs compare an image with itself",
            remedy="choose pairs of two different images: identical images are always matched",
            share=num_identical / len(same),
            figures={"identical": num_identical, "pairs": len(same)},
        )
