"""An embedder judged on pairs of images."""

from __future__ import annotations

import numpy as np

from margrave.data import FaceImages, PairList
from margrave.evaluation import PairResult, Stratum, evaluate_pairs, evaluate_strata, fuse_flips
from margrave.inference.embedder import Embedder, Progress

QUALITY_EDGES = (0.25, 0.5, 0.75)
"""Where pairs are divided by the ground-truth quality of their worse image."""


def embed_pairs(
    embedder: Embedder, images: FaceImages, pairs: PairList, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(P, D) and (P, D) flip-fused unit embeddings of both sides; each image is embedded once."""
    used, position = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    plain, mirrored = embedder.embed_images(images, used, progress=progress)
    fused = fuse_flips(plain, mirrored)
    first, second = position.reshape(2, -1)
    return fused[first], fused[second]


def verify(
    embedder: Embedder,
    images: FaceImages,
    pairs: PairList,
    progress: Progress | None = None,
    resamples: int = 1000,
) -> tuple[PairResult, tuple[Stratum, ...]]:
    """The LFW protocol with flip fusion and identity-aware intervals.

    Where the images' ground-truth quality is known (synthetic faces), also by the quality of the
    pair's worse image; otherwise there are no strata.
    """
    first, second = embed_pairs(embedder, images, pairs, progress)
    labels = np.asarray(images.labels) if hasattr(images, "labels") else None
    identities = None
    if labels is not None:
        identities = np.stack([labels[pairs.first], labels[pairs.second]], axis=1)
    result = evaluate_pairs(
        first, second, pairs.same, pairs.folds, identities=identities, resamples=resamples
    )
    quality = getattr(images, "quality", None)
    if quality is None:
        return result, ()
    worse = np.minimum(quality[pairs.first], quality[pairs.second])
    return result, evaluate_strata(
        first, second, pairs.same, worse, QUALITY_EDGES, folds=pairs.folds
    )
