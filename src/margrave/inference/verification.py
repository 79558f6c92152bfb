"""An embedder judged on pairs of images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from margrave.data import PairList, ReadableImages
from margrave.evaluation import PairResult, Stratum, evaluate_pairs, evaluate_strata, fuse_flips
from margrave.inference.embedder import Embedder, Progress

QUALITY_EDGES = (0.25, 0.5, 0.75)
"""Where pairs are divided by the ground-truth quality of their worse image."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What an embedder is worth on a set of pairs.

    Attributes:
        result: the LFW protocol, with intervals over identities where they are known.
        strata: by the ground-truth quality of the worse image; empty where it is not known.
        unreadable: images that could not be read, and why; their pairs are left out.
    """

    result: PairResult
    strata: tuple[Stratum, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)


def embed_pairs(
    embedder: Embedder,
    images: ReadableImages,
    pairs: PairList,
    progress: Progress | None = None,
    unreadable: dict[int, str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(P, D) and (P, D) flip-fused unit embeddings of both sides; each image is embedded once.

    Images that cannot be read raise, or leave zeros and their reason in `unreadable`.
    """
    used, position = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    plain, mirrored = embedder.embed_images(images, used, progress=progress, unreadable=unreadable)
    fused = np.zeros_like(plain)
    read = ~np.isin(used, list(unreadable or ()))
    fused[read] = fuse_flips(plain[read], mirrored[read])
    first, second = position.reshape(2, -1)
    return fused[first], fused[second]


def verify(
    embedder: Embedder,
    images: ReadableImages,
    pairs: PairList,
    progress: Progress | None = None,
    resamples: int = 1000,
    maximum_unreadable: int = 0,
) -> Verification:
    """The LFW protocol with flip fusion.

    Args:
        embedder: what is judged.
        images: what the pairs index into.
        pairs: who is compared with whom.
        progress: called with (images done, images in all).
        resamples: bootstrap replicates; 0 for no intervals.
        maximum_unreadable: images that may be unreadable, whose pairs are left out.

    Raises:
        ValueError: more unreadable images than that, naming them; pairs too few to judge.
    """
    unreadable: dict[int, str] = {}
    first, second = embed_pairs(embedder, images, pairs, progress, unreadable)
    if len(unreadable) > maximum_unreadable:
        shown = "\n  ".join(list(unreadable.values())[:10])
        raise ValueError(
            f"{len(unreadable)} images cannot be read, more than maximum_unreadable = "
            f"{maximum_unreadable}; mend them, or raise the limit (--maximum-unreadable):\n"
            f"  {shown}"
        )
    kept = ~(np.isin(pairs.first, list(unreadable)) | np.isin(pairs.second, list(unreadable)))
    sides = (first[kept], second[kept], pairs.same[kept])
    labels = getattr(images, "labels", None)
    identities = None
    if labels is not None:
        identities = np.stack([labels[pairs.first], labels[pairs.second]], axis=1)[kept]
    # What is left out may leave fewer pairs than folds.
    folds = min(pairs.folds, max(2, int(kept.sum())))
    result = evaluate_pairs(*sides, folds=folds, identities=identities, resamples=resamples)
    result = replace(result, protocol=f"{result.protocol}; F2")
    quality, strata = getattr(images, "quality", None), ()
    if quality is not None:
        worse = np.minimum(quality[pairs.first], quality[pairs.second])[kept]
        strata = evaluate_strata(*sides, worse, QUALITY_EDGES, folds=folds)
    names = {images.name(index): reason for index, reason in unreadable.items()}
    return Verification(result=result, strata=strata, unreadable=names)
