"""Checks that an exported model gives the same embeddings and decisions as the original."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from margrave.data import ReadableImages
from margrave.evaluation import fuse_flips, unit_rows
from margrave.inference import Embedder
from margrave.models import OperatingPoint
from margrave.synthetic import SyntheticFaces

MIN_COSINE = 0.99999
"""Minimum cosine between the two models' embeddings of the same image."""
MAX_NORM_ERROR = 1e-5
"""Maximum relative difference between the norms of the two embeddings."""
ROUNDING_MARGIN = 1e-5
"""If both models score a pair this close to the threshold, rounding may change the decision."""
FIRST_BATCHES = (1, 3)
"""Sizes of the first batches, to test that the graph also accepts other sizes than `BATCH_SIZE`."""
BATCH_SIZE = 32
RANDOM_IMAGES = 16
"""Number of images of random pixels."""
MIN_SYNTHETIC_IDENTITIES, IMAGES_PER_IDENTITY = 16, 4
"""Size of the synthetic set, which gets more identities if more faces are requested."""


@dataclass(frozen=True, kw_only=True)
class DecisionParity:
    """How the decisions of both models on all pairs of faces differ at one threshold.

    Attributes:
        point: the operating point whose threshold is used.
        pairs: number of face pairs.
        accepted: number of pairs that the original accepts.
        differing: number of pairs on which the two models decide differently.
        beyond_rounding: number of these differing pairs for which at least one model's score is
            more than 1e-5 from the threshold.
    """

    point: OperatingPoint
    pairs: int
    accepted: int
    differing: int
    beyond_rounding: int


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far an exported model's embeddings differ from the original's.

    Attributes:
        description: what the images are, for messages, such as ``faces``.
        count: number of images.
        cosine: smallest cosine between the two models' embeddings of the same image.
        norm_error: largest |‖e‖ − ‖o‖| / ‖o‖, where e and o are the exported and the original
            model's embeddings of the same image.
        score_error: largest absolute difference between the two models' cosines of the same pair.
        decisions: one comparison per operating point of the original's card; empty for random
            pixels.
    """

    description: str
    count: int
    cosine: float
    norm_error: float
    score_error: float
    decisions: tuple[DecisionParity, ...] = ()


def compare_embedders(
    original: Embedder,
    exported: Embedder,
    faces: ReadableImages | None = None,
    *,
    num_faces: int = 64,
) -> tuple[Parity, ...]:
    """Compare both models on faces and on random pixels, in batches of 1, 3 and 32.

    Args:
        original: the original model, whose card contains the thresholds.
        exported: the exported model.
        faces: aligned faces; None uses Margrave's synthetic faces.
        num_faces: number of faces to use, at least 2, spread evenly over `faces`.

    Returns:
        two comparisons: on the faces, then on random pixels.

    Raises:
        ValueError: an image cannot be read, or there are fewer than 2 faces.
    """
    description = "faces"
    if faces is None:
        # Synthetic faces can have 32 to 512 pixels per side.
        size = min(max(original.card.image_size, 32), 512)
        description, faces = "synthetic faces", _create_synthetic_faces(num_faces, size)
    if len(faces) < 2 or num_faces < 2:
        raise ValueError(
            f"comparing two models needs at least 2 faces, got {min(len(faces), num_faces)}"
        )
    indices = np.unique(np.linspace(0, len(faces) - 1, min(num_faces, len(faces))).astype(int))
    pixels = torch.stack(
        [original.prepare(faces.read(index), faces.name(index)) for index in indices.tolist()]
    )
    noise = torch.randint(
        0, 256, (RANDOM_IMAGES, *pixels.shape[1:]), generator=torch.Generator().manual_seed(0)
    ).to(torch.uint8)
    return (
        _compare_images(description, original, exported, pixels, original.card.operating_points),
        _compare_images("random pixels", original, exported, noise, ()),
    )


def _create_synthetic_faces(min_count: int, image_size: int) -> SyntheticFaces:
    # Rounded up, so that there are at least `min_count` images.
    identities = max(MIN_SYNTHETIC_IDENTITIES, -(-min_count // IMAGES_PER_IDENTITY))
    return SyntheticFaces(
        num_identities=identities,
        images_per_identity=IMAGES_PER_IDENTITY,
        image_size=image_size,
    )


def check_parity(results: Sequence[Parity], model: str) -> None:
    """Raise an error if an exported model differs from the original by more than rounding.

    Args:
        results: the results of ``compare_embedders``.
        model: the model's name in messages.

    Raises:
        ValueError: a cosine is below 0.99999, a norm's relative error is above 1e-5, or a decision
            differs beyond rounding; the message gives the measured values.

    >>> result = Parity(description="faces", count=2, cosine=0.9, norm_error=0, score_error=0)
    >>> check_parity([result], "m")
    Traceback (most recent call last):
        ...
    ValueError: m: the exported model differs from the original: on 2 faces, cosine 0.900000000 \
(at least 0.99999), norm error 0.0e+00 (at most 1e-05); nothing was written; please report this \
with the model
    """
    for result in results:
        # Comparisons with NaN are False, so NaN fails too.
        embeddings_agree = result.cosine >= MIN_COSINE and result.norm_error <= MAX_NORM_ERROR
        failed = [comparison for comparison in result.decisions if comparison.beyond_rounding]
        if embeddings_agree and not failed:
            continue
        measured = (
            f"cosine {result.cosine:.9f} (at least {MIN_COSINE}), "
            f"norm error {result.norm_error:.1e} (at most {MAX_NORM_ERROR:g})"
        )
        for comparison in failed:
            measured += (
                f", {comparison.differing} of {comparison.pairs:,} decisions differ at FAR "
                f"{comparison.point.far:g}"
            )
        raise ValueError(
            f"{model}: the exported model differs from the original: on {result.count} "
            f"{result.description}, {measured}; nothing was written; please report this with the "
            "model"
        )


def _compare_images(
    description: str,
    original: Embedder,
    exported: Embedder,
    pixels: torch.Tensor,
    points: Sequence[OperatingPoint],
) -> Parity:
    """Compare both models on (N, 3, S, S) uint8 images, and their decisions at each point."""
    original_embeddings, exported_embeddings = _embed(original, pixels), _embed(exported, pixels)
    original_units, exported_units = unit_rows(original_embeddings), unit_rows(exported_embeddings)
    original_norms, exported_norms = (
        np.linalg.norm(embeddings, axis=1)
        for embeddings in (original_embeddings, exported_embeddings)
    )
    decisions = []
    fused_scores: tuple[np.ndarray, np.ndarray] | None = None
    for point in points:
        scores = _pair_cosines(original_units), _pair_cosines(exported_units)
        if point.flips:
            if fused_scores is None:
                flipped = pixels.flip(3)
                fused_scores = (
                    _pair_cosines(fuse_flips(original_embeddings, _embed(original, flipped))),
                    _pair_cosines(fuse_flips(exported_embeddings, _embed(exported, flipped))),
                )
            scores = fused_scores
        decisions.append(_compare_decisions(point, *scores))
    return Parity(
        description=description,
        count=len(pixels),
        cosine=float((original_units * exported_units).sum(1).min()),
        norm_error=float((np.abs(exported_norms - original_norms) / original_norms).max()),
        score_error=float(
            np.abs(_pair_cosines(original_units) - _pair_cosines(exported_units)).max()
        ),
        decisions=tuple(decisions),
    )


def _compare_decisions(
    point: OperatingPoint, original_scores: np.ndarray, exported_scores: np.ndarray
) -> DecisionParity:
    """Compare the decisions on (P,) scores of the original and the exported model."""
    accepted = original_scores > point.threshold
    differing = accepted != (exported_scores > point.threshold)
    both_near_threshold = (
        np.maximum(
            *(np.abs(scores - point.threshold) for scores in (original_scores, exported_scores))
        )
        <= ROUNDING_MARGIN
    )
    return DecisionParity(
        point=point,
        pairs=len(original_scores),
        accepted=int(accepted.sum()),
        differing=int(differing.sum()),
        beyond_rounding=int((differing & ~both_near_threshold).sum()),
    )


def _pair_cosines(units: np.ndarray) -> np.ndarray:
    """Compute the (P,) cosines of all P = N (N - 1) / 2 pairs among (N, D) unit vectors."""
    return (units @ units.T)[np.triu_indices(len(units), 1)]


def _embed(embedder: Embedder, pixels: torch.Tensor) -> np.ndarray:
    """Compute (N, D) float64 embeddings, in batches of 1, 3 and then `BATCH_SIZE` images."""
    sizes = [*FIRST_BATCHES] + [BATCH_SIZE] * (len(pixels) // BATCH_SIZE + 1)
    bounds = np.minimum(np.cumsum([0, *sizes]), len(pixels))
    embeddings = [
        embedder.embed_pixels(pixels[start:end])
        for start, end in itertools.pairwise(bounds.tolist())
        if start < end
    ]
    return torch.cat(embeddings).double().numpy()
