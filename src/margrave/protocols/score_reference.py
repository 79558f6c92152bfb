"""Measure a model's score reference: calibration, score distributions, thresholds, norms."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from margrave.evaluation import cllr, cllr_min, fit_calibration, unit_rows
from margrave.inference import ChosenRows, Features
from margrave.models import Calibration, ScoreReference
from margrave.quantity import quantity

MAX_IMAGES = 6000
"""Largest number of images to compare: 6,000 images make 18 million pairs."""
MIN_CALIBRATION_IDENTITIES = 10
"""A calibration needs this many identities with several images: half to fit, half to test it."""
BINS = 100
"""Number of bins of a score histogram."""
FAR_STEPS = (1.0, 0.5, 0.2)
"""A reference lists thresholds at these multiples of 0.1, 0.01, …: FARs 0.1, 0.05, 0.02, 0.01, …"""
MIN_FALSE_ACCEPTS = 3
"""Smallest number of false accepts that a listed FAR must allow, by the rule of three.

If none of n impostor pairs is accepted, the 95 % upper limit of the FAR is 3/n. So n pairs cannot
show a FAR below 3/n, which allows three false accepts.
"""
MIN_NORM_VARIATION = 1e-3
"""Norms with a smaller std / mean are equal up to rounding: the model normalizes its embeddings.

The reference then holds no norms.
"""


def measure_reference(features: Features, seed: int = 0) -> ScoreReference:
    """Measure the scores of all pairs of labeled faces, their calibration, and the faces' norms.

    The calibration is fitted on a random half of the identities and tested on the other half. With
    fewer than 10 identities that have several images, there is no calibration.

    Args:
        features: labeled features of people like those in the application. If there are more than
            6,000 images, identities are sampled.
        seed: seed of the sampling.

    Raises:
        ValueError: there are no labeled images, or an embedding is zero or not finite.
    """
    readable = features.readable_rows
    labeled = readable[features.labels[readable] >= 0]
    if not len(labeled):
        raise ValueError(
            f"{features.display_name} holds no labeled images; embed a folder with one subfolder "
            "per identity"
        )
    generator = np.random.default_rng(seed)
    rows = _sample_identities(labeled, features.labels[labeled], generator)
    labels = features.labels[rows]
    units = unit_rows(ChosenRows(features.rows, rows)[0 : len(rows)]).astype(np.float32)
    genuine, impostors = pair_scores(units, labels)
    source = features.description["images"]["source"] or Path(features.display_name).name
    # The norms are those of the images themselves, without flip fusion.
    norms = np.linalg.norm(ChosenRows(features.embeddings, rows)[0 : len(rows)], axis=1)
    norms_vary = norms.std() > MIN_NORM_VARIATION * norms.mean()
    return ScoreReference(
        measured_on=(
            f"{quantity(len(rows), 'image')} of {quantity(len(np.unique(labels)), 'person')} in "
            f"{source}"
        ),
        flips=features.flipped is not None,
        calibration=_calibration(units, labels, generator),
        genuine=score_histogram(genuine),
        impostors=score_histogram(impostors),
        far_thresholds=far_thresholds(impostors),
        norm_percentiles=tuple(np.percentile(norms, np.arange(101)).tolist()) if norms_vary else (),
    )


def _sample_identities(
    rows: np.ndarray, labels: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The rows of random identities: as many identities as fit into ``MAX_IMAGES``, at least two.

    If there are at most ``MAX_IMAGES`` rows, all rows.
    """
    if len(rows) <= MAX_IMAGES:
        return rows
    identities, counts = np.unique(labels, return_counts=True)
    order = generator.permutation(len(identities))
    num_identities = max(
        2, int(np.searchsorted(np.cumsum(counts[order]), MAX_IMAGES, side="right"))
    )
    return rows[np.isin(labels, identities[order[:num_identities]])]


def pair_scores(units: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(G,) cosines of all genuine pairs and (I,) of all impostor pairs.

    Args:
        units: (N, D) unit embeddings.
        labels: (N,) identities.
    """
    genuine, impostors = [], []
    block_rows = 512
    for start in range(0, len(units), block_rows):
        scores = units[start : start + block_rows] @ units.T
        # Above the diagonal of the (N, N) score matrix, each pair occurs once.
        upper = np.arange(len(units)) > np.arange(start, start + len(scores))[:, None]
        same = labels[start : start + block_rows, None] == labels
        genuine.append(scores[upper & same])
        impostors.append(scores[upper & ~same])
    return np.concatenate(genuine), np.concatenate(impostors)


def score_histogram(scores: np.ndarray) -> tuple[float, ...]:
    """The share of scores in each of 100 equal bins over [−1, 1]; empty if there are no scores."""
    if not len(scores):
        return ()
    counts, _ = np.histogram(np.clip(scores, -1, 1), BINS, (-1, 1))
    return tuple((counts / len(scores)).round(8).tolist())


def far_thresholds(impostors: np.ndarray) -> tuple[tuple[float, float], ...]:
    """(FAR, cosine threshold) for FARs of 0.1, 0.05, 0.02, …

    Scores strictly above the threshold are accepted. The list ends with the smallest FAR that
    allows at least three false accepts.

    >>> far_thresholds(np.arange(100) / 128)
    ((0.1, 0.6953125), (0.05, 0.734375))
    """
    fars = [step * 10.0**-power for power in range(1, 10) for step in FAR_STEPS]
    targets = [far for far in fars if far * len(impostors) >= MIN_FALSE_ACCEPTS]
    if not targets:
        return ()
    # 1e-9 compensates for rounding: a product such as 0.05 · 100 may come out just below 5.
    false_accepts = [int(far * len(impostors) + 1e-9) for far in targets]
    num_largest = false_accepts[0] + 1
    largest = np.sort(np.partition(impostors, -num_largest)[-num_largest:])[::-1]
    # At most k scores are strictly above largest[k], so at most k impostor pairs are accepted.
    return tuple(
        (float(f"{far:.3g}"), float(largest[count]))
        for far, count in zip(targets, false_accepts, strict=True)
    )


def _calibration(
    units: np.ndarray, labels: np.ndarray, generator: np.random.Generator
) -> Calibration | None:
    """Fit a calibration on half of the identities with several images; test it on the others.

    None if there are too few such identities, or if the scores cannot be calibrated.
    """
    identities, counts = np.unique(labels, return_counts=True)
    shuffled = generator.permutation(identities[counts > 1])
    if len(shuffled) < MIN_CALIBRATION_IDENTITIES:
        return None
    half = len(shuffled) // 2
    halves = []
    for identities_of_half in (shuffled[:half], shuffled[half:]):
        rows = np.isin(labels, identities_of_half)
        halves.append(pair_scores(units[rows], labels[rows]))
    (genuine, impostors), (test_genuine, test_impostors) = halves
    try:
        slope, offset = fit_calibration(genuine, impostors)
    except ValueError:
        return None
    return Calibration(
        slope=slope,
        offset=offset,
        cllr=cllr(slope * test_genuine + offset, slope * test_impostors + offset),
        cllr_min=cllr_min(test_genuine, test_impostors),
        people=half,
    )
