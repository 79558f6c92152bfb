"""The doctor's round through a data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from margrave.data import (
    FaceImages,
    PairList,
    ReadableImages,
    RecordImages,
    ShardImages,
    damaged_shards,
)
from margrave.doctor.alignment import check_alignment
from margrave.doctor.findings import Finding, ranked
from margrave.doctor.image_checks import (
    SHOWN,
    SMALLEST_SIDE,
    check_colour,
    check_duplicates,
    check_reading,
    check_sizes,
    near_duplicates,
)
from margrave.doctor.measurements import Measurements, Progress, measure_images
from margrave.faces import Detector


def examine_images(
    images: FaceImages,
    most: int = 20_000,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
    seed: int = 0,
    smallest: int = SMALLEST_SIDE,
    detector: Detector | None = None,
) -> list[Finding]:
    """Everything that is wrong with a labelled data set, the worst first.

    Args:
        images: the set.
        most: look at this many of the images, whole identities at a time, drawn at random.
        workers: threads.
        progress: called with (images done, images in all).
        seed: of the draw.
        smallest: a side below which an image shows no face, pixels.
        detector: finds the landmarks that alignment is judged by, see ``available_detector``.
    """
    labels = np.asarray(images.labels)
    seen = measure_images(images, drawn(labels, most, seed), workers, progress)
    found = [*check_labels(images), *_look_at(seen, images, smallest, detector, progress)]
    found += check_duplicates(seen, images.name, labels, lambda n: str(images.class_names[n]))
    if isinstance(images, ShardImages) and Path(images.root, "shards.json").is_file():
        found += _check_shards(images)
    return ranked(found)


def examine_pairs(
    images: ReadableImages,
    pairs: PairList,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
    detector: Detector | None = None,
) -> list[Finding]:
    """Everything that is wrong with a verification set, the worst first.

    Args:
        images: what the pairs index into.
        pairs: who is compared with whom.
        workers: threads.
        progress: called with (images done, images in all).
        detector: finds the landmarks that alignment is judged by, see ``available_detector``.
    """
    indices = np.unique(np.concatenate([pairs.first, pairs.second]))
    seen = measure_images(images, indices.tolist(), workers, progress)
    found = [
        *check_pairs(pairs, seen),
        *_look_at(seen, images, SMALLEST_SIDE, detector, progress),
    ]
    return ranked(found)


def drawn(labels: np.ndarray, most: int, seed: int = 0) -> list[int]:
    """Indices of all images of random identities, up to so many."""
    if len(labels) <= most:
        return list(range(len(labels)))
    order = np.random.default_rng(seed).permutation(labels.max() + 1)
    sizes = np.bincount(labels)[order]
    whole = order[: max(1, int(np.searchsorted(np.cumsum(sizes), most, side="right")))]
    return np.flatnonzero(np.isin(labels, whole))[:most].tolist()


def _look_at(
    seen: Measurements,
    images: ReadableImages,
    smallest: int,
    detector: Detector | None,
    progress: Progress,
) -> Iterator[Finding]:
    yield from check_reading(seen, images.name)
    yield from check_colour(seen, images.name)
    yield from check_alignment(seen, images, detector, progress)
    yield from check_sizes(seen, images.name, smallest)


def check_labels(images: FaceImages) -> Iterator[Finding]:
    """Gaps in the numbers, what the property file says, and how the classes are filled."""
    labels = np.asarray(images.labels)
    sizes = np.bincount(labels, minlength=len(images.class_names))
    names = [*images.class_names, *getattr(images, "left_out", {})]
    if isinstance(images, RecordImages) or (isinstance(images, ShardImages) and images.walked):
        # Here alone an identity's name is its label in the file.
        yield from _check_numbers(np.sort(np.array([int(name) for name in names])))
    if isinstance(images, RecordImages) and images.num_classes not in (None, len(names)):
        yield Finding(
            fault="wrong_class_count",
            severity="serious",
            said=f"property says {images.num_classes} identities, the records hold {len(names)}",
            remedy="fetch the set again, or correct the first number of the property file",
            figures={"property": images.num_classes, "records": len(names)},
        )
    single = float((sizes < 2).mean())
    if single > 0.2:
        yield Finding(
            fault="single_images",
            severity="serious" if single > 0.8 else "warning",
            said=f"{100 * single:.0f} % of the {len(sizes)} identities have a single image",
            remedy="leave them out (minimum_images=2): a single image teaches nothing about what "
            "varies within a person, and KappaFace cannot tell its concentration",
            share=single,
            figures=histogram(sizes),
        )
    largest, median = int(sizes.max()), float(np.median(sizes))
    if largest > 50 * median:
        yield Finding(
            fault="dominant_identity",
            severity="warning",
            said=f"the largest identity, {images.class_names[int(sizes.argmax())]}, has {largest} "
            f"images, the median {median:.0f}",
            remedy="look at its images: a folder for everybody unknown does this",
            share=largest / len(labels),
            figures=histogram(sizes),
        )
    yield Finding(
        fault="class_sizes",
        severity="note",
        said=f"{len(labels)} images of {len(sizes)} identities: {sizes.min()} to {largest} each, "
        f"median {median:.0f}; the largest tenth of the identities has "
        f"{100 * np.sort(sizes)[-max(1, len(sizes) // 10) :].sum() / len(labels):.0f} % of them",
        remedy="none needed",
        share=0.0,
        figures=histogram(sizes),
    )


def _check_numbers(numbers: np.ndarray) -> Iterator[Finding]:
    missing = int(numbers[-1]) + 1 - len(numbers)
    if not missing:
        return
    shifted = missing == numbers[0]
    before = np.concatenate([[-1], numbers[:-1]])
    after_gaps = np.flatnonzero(numbers - before > 1)[:SHOWN]
    shown = ", ".join(str(before[place] + 1) for place in after_gaps)
    said = f"labels begin at {numbers[0]}: they are off by {numbers[0]}"
    if not shifted:
        said = f"{missing} labels between 0 and {numbers[-1]} have no images, from {shown} on"
    yield Finding(
        fault="shifted_labels" if shifted else "label_gaps",
        severity="warning",
        said=said,
        remedy="pack the set again (margrave pack numbers identities from 0); Margrave renumbers "
        "when it reads, other programs count classes wrongly or index out of range",
        share=missing / (int(numbers[-1]) + 1),
        figures={"missing": missing, "first": int(numbers[0]), "last": int(numbers[-1])},
    )


def histogram(sizes: np.ndarray) -> dict[str, int]:
    """Identities by how many images they have, in doubling steps.

    >>> histogram(np.array([1, 1, 3, 9]))
    {'1': 2, '2-3': 1, '8-15': 1}
    """
    found: dict[str, int] = {}
    low = 1
    while low <= sizes.max(initial=0):
        count = int(((sizes >= low) & (sizes < 2 * low)).sum())
        if count:
            found[str(low) if low == 1 else f"{low}-{2 * low - 1}"] = count
        low *= 2
    return found


def _check_shards(images: ShardImages) -> Iterator[Finding]:
    damaged = list(damaged_shards(images.root))
    if damaged:
        yield Finding(
            fault="damaged_shards",
            severity="serious",
            said=f"{len(damaged)} of {len(images.shards)} shards are not what was packed",
            remedy="fetch or copy them again",
            share=1.0,
            examples=tuple(damaged[:SHOWN]),
            figures={"damaged": len(damaged), "shards": len(images.shards)},
        )


def check_pairs(pairs: PairList, seen: Measurements) -> Iterator[Finding]:
    """Truth values that cannot be true, or that measure nothing."""
    same = np.asarray(pairs.same, bool)
    share = float(same.mean())
    if not 0.05 < share < 0.95:
        yield Finding(
            fault="one_sided_pairs",
            severity="serious",
            said=f"{100 * share:.0f} % of the {len(same)} pairs are of one person",
            remedy="accuracy means nothing unless both kinds are there; margrave pack --pairs "
            "makes a set of your own",
            figures={"share_same": round(share, 4), "pairs": len(same)},
        )
    where = {int(index): row for row, index in enumerate(seen.indices)}
    alike = {tuple(pair) for pair in near_duplicates(seen).tolist()}
    contradicted, identical = [], 0
    for number, (one, other) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        rows = sorted((where.get(int(one), -1), where.get(int(other), -2)))
        if rows[0] == rows[1] or tuple(rows) in alike:
            identical += 1
            if not same[number]:
                contradicted.append(number)
    if contradicted:
        yield Finding(
            fault="contradicted_pairs",
            severity="serious",
            said=f"{len(contradicted)} pairs of one and the same image are said to be of two "
            "people: the truth values are reversed or belong to other pairs",
            remedy="make the set again, and check that image 2k and 2k + 1 belong to value k",
            share=len(contradicted) / len(same),
            examples=tuple(f"pair {number}" for number in contradicted[:SHOWN]),
            figures={"contradicted": len(contradicted), "pairs": len(same)},
        )
    if identical > 0.05 * len(same):
        yield Finding(
            fault="identical_pairs",
            severity="warning",
            said=f"{identical} of {len(same)} pairs compare an image with itself",
            remedy="draw pairs of two images each: these are recognised by anything",
            share=identical / len(same),
            figures={"identical": identical, "pairs": len(same)},
        )
