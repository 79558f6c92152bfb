"""Verification of image pairs: LFW and similar sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from margrave.data import (
    ImageFiles,
    ImageSubset,
    PairList,
    ReadableImages,
    balanced_pairs,
    is_path_list,
    open_source,
    read_csv_pairs,
    read_lfw_pairs,
    read_pairs_bin,
    read_pairs_by_path,
)
from margrave.evaluation import (
    Figure,
    Result,
    evaluate_pairs,
    evaluate_strata,
)
from margrave.inference import ChosenRows, Embedder, Features, embed_features
from margrave.progress import Progress
from margrave.protocols.contract import PROTOCOLS, EvaluationOptions, Protocol, required_source

QUALITY_EDGES = (0.25, 0.5, 0.75)
"""Edges between the strata of pairs. A pair's quality, in [0, 1], is that of its worse image."""
MIN_DRAWN_PAIRS = 20
"""One genuine and one impostor pair for each of LFW's 10 folds."""


@PROTOCOLS.register("pairs")
class Pairs(Protocol):
    """Verify pairs by LFW's 10-fold protocol, and report TAR at FAR.

    Source: Huang et al., "Labeled Faces in the Wild" (2007), image-restricted.
    """

    positional: ClassVar[tuple[str, ...]] = ("pairs",)

    pairs: Path | None = None
    """LFW's pairs.txt, a CSV, lines 'path path 1', or a .bin set; by default, pairs are drawn."""
    number: int = 1000
    """The number of balanced pairs to draw, a multiple of 20."""
    pairs_seed: int = 0
    """The seed for drawing pairs."""
    allow_outside: bool = False
    """Allow the list of pairs to name files outside the images' folder."""

    _opened: tuple[ReadableImages, PairList] | None = PrivateAttr(None)
    """The images opened for a model, and the pairs as indices of these images."""

    def open_images(self, source: str | None, image_size: int) -> ReadableImages:
        """Open the images that the pairs name; a .bin set contains its own images."""
        del image_size
        is_packed = self.pairs is not None and self.pairs.suffix.lower() == ".bin"
        if is_packed and source is not None:
            raise ValueError(f"{self.pairs} contains its own images; leave out --images")
        root = "" if is_packed else required_source(source)
        self._opened = open_pairs(
            root, self.pairs, self.number, self.pairs_seed, self.allow_outside
        )
        return self._opened[0]

    def evaluate(self, features: Features, options: EvaluationOptions) -> Sequence[Result]:
        """Evaluate the features and return one result."""
        pairs = self._pairs_of(features)
        name = self.pairs.name if self.pairs else features.description["images"]["source"]
        return [pair_result(features, pairs, options.resamples, name)]

    def _pairs_of(self, features: Features) -> PairList:
        """Return the opened pairs if they match the features; otherwise read or draw the pairs."""
        if self._opened is not None and features.has_images(self._opened[0]):
            return self._opened[1]
        return _find_pairs(features, self.pairs, self.number, self.pairs_seed)


def open_pairs(
    source: str | Mapping[str, Any],
    pairs: Path | None,
    number: int = 1000,
    seed: int = 0,
    allow_outside: bool = False,
) -> tuple[ReadableImages, PairList]:
    """Read or draw pairs, and open only the images that they use.

    Args:
        source: the images' path or a data source's specification; empty for a .bin set.
        pairs: the list of pairs or the .bin set; None draws balanced pairs.
        number: the number of pairs to draw, a multiple of 20.
        seed: the seed for drawing pairs.
        allow_outside: allow the list to name files outside the images' folder.

    Returns:
        The images, and the pairs as indices of these images.

    Raises:
        ValueError: the pairs are malformed, or an image is missing.
    """
    if pairs is not None and pairs.suffix.lower() == ".bin":
        pair_list, packed_images = read_pairs_bin(pairs)
        return packed_images, pair_list
    if pairs is not None and is_path_list(pairs):
        root = source if isinstance(source, str) else source.get("root")
        if not isinstance(root, str):
            raise ValueError(f"{pairs} names files, so the images must be a folder")
        pair_list, files = read_csv_pairs(pairs, root, allow_outside=allow_outside)
        return _with_labels(files, root), pair_list
    images = open_source(source, labeled=True)
    if pairs is not None:
        pair_list = read_lfw_pairs(pairs, images)
    else:
        pair_list = _draw_pairs(np.asarray(images.labels), number, seed)
    used, inverse = np.unique(np.stack([pair_list.first, pair_list.second]), return_inverse=True)
    first, second = inverse.reshape(2, -1)
    return ImageSubset(images, used), replace(pair_list, first=first, second=second)


def _with_labels(files: ImageFiles, root: str) -> ReadableImages:
    """Label the images if `root` has a subfolder per identity that contains them.

    Otherwise, return them unchanged.
    """
    try:
        images = open_source(root, labeled=True)
    except ValueError:
        return files
    row_of = {images.path(row): row for row in range(len(images))}
    rows = [row_of.get(files.path(index), -1) for index in range(len(files))]
    return ImageSubset(images, np.array(rows)) if min(rows) >= 0 else files


def _draw_pairs(labels: np.ndarray, number: int, seed: int) -> PairList:
    if number < MIN_DRAWN_PAIRS:
        raise ValueError(
            f"number must be at least {MIN_DRAWN_PAIRS} and a multiple of {MIN_DRAWN_PAIRS}, "
            f"got {number}"
        )
    return balanced_pairs(labels, number, seed)


def _find_pairs(features: Features, pairs: Path | None, number: int, seed: int) -> PairList:
    """Read the pairs, or draw them if there is no list, as row indices of the features."""
    if pairs is None:
        if (features.labels < 0).any():
            raise ValueError(
                f"{features.display_name} contains images without labels, so pairs cannot be "
                "drawn; give a list of pairs"
            )
        return _draw_pairs(features.labels, number, seed)
    if pairs.suffix.lower() != ".bin":
        return read_pairs_by_path(pairs, features.names)
    pair_list, images = read_pairs_bin(pairs)
    embedded = features.description["images"]
    if embedded.get("content_digest") != images.content_digest:
        raise ValueError(
            f"{features.display_name} holds features of the {len(features)} images of "
            f"{embedded['source']!r}, not of the {len(images)} images in {pairs}; embed the .bin "
            f"file first: margrave embed MODEL {pairs} FEATURES"
        )
    return pair_list


def pair_result(
    features: Features, pairs: PairList, resamples: int = 1000, name: str = ""
) -> Result:
    """Evaluate pairs of features by LFW's protocol, without pairs that have an unreadable image.

    If the images' ground-truth quality is known, the result also has figures by quality.

    Args:
        features: the images' features.
        pairs: the pairs as row indices of the features.
        resamples: number of bootstrap replicates; 0 for no intervals.
        name: the name of the set of pairs.

    Raises:
        ValueError: there are too few pairs.
    """
    unreadable_rows = list(features.unreadable)
    is_kept = ~np.isin(np.stack([pairs.first, pairs.second]), unreadable_rows).any(0)
    first, second, same = pairs.first[is_kept], pairs.second[is_kept], pairs.same[is_kept]
    # There may be fewer remaining pairs than folds.
    folds = min(pairs.folds, max(2, len(same)))
    used, inverse = np.unique(np.stack([first, second]), return_inverse=True)
    fused = ChosenRows(features.rows, used)[0 : len(used)]
    sides = fused[inverse.reshape(2, -1)[0]], fused[inverse.reshape(2, -1)[1]]
    result = evaluate_pairs(
        *sides, same, folds, _identities(features, first, second, same), resamples=resamples
    )
    quality_figures: list[Figure] = []
    if features.quality is not None:
        pair_quality = np.minimum(features.quality[first], features.quality[second])
        strata = evaluate_strata(*sides, same, pair_quality, QUALITY_EDGES, folds=folds)
        quality_figures = [figure for stratum in strata for figure in stratum.figures()]
    fusion = "no flipped images" if features.flipped is None else "flip fusion"
    result = replace(result, rules=f"{result.rules}; {fusion}").result(name, quality_figures)
    unreadable = {features.name(row): reason for row, reason in features.unreadable.items()}
    # Norms are those of the unfused embeddings.
    embeddings = ChosenRows(features.embeddings, used)[0 : len(used)].astype(np.float64)
    norms = np.linalg.norm(embeddings, axis=1)
    if result.scores is not None:
        digest = digest_of_pairs(features.name, first, second)
        lower_norms = norms[inverse.reshape(2, -1)].min(axis=0).tolist()
        scores = replace(result.scores, images_digest=digest, lower_norms=tuple(lower_norms))
        result = replace(result, scores=scores)
    if features.quality is not None:
        by_quality = _norm_by_quality(norms, features.quality[used])
        result = replace(result, curves={**result.curves, "norm by quality": by_quality})
    return replace(result, unreadable=unreadable)


def digest_of_pairs(name_of: Callable[[int], str], first: np.ndarray, second: np.ndarray) -> str:
    """The SHA-256 digest, in hex, of all pairs' first images' names, then their second images'.

    Args:
        name_of: returns the name of the image with a given index.
        first: (P,) index of each pair's first image.
        second: (P,) index of each pair's second image.
    """
    names = [[name_of(int(index)) for index in side] for side in (first, second)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _norm_by_quality(norms: np.ndarray, quality: np.ndarray) -> dict[str, tuple[float, ...]]:
    """Quartiles of the feature norm in up to ten groups of images, from low to high quality."""
    # There are fewer groups if many images have the same quality.
    edges = np.unique(np.quantile(quality, np.linspace(0, 1, 11)[1:-1]))
    group = np.searchsorted(edges, quality, side="right")
    groups = [np.flatnonzero(group == number) for number in np.unique(group)]
    quartiles = np.array([np.quantile(norms[rows], (0.25, 0.5, 0.75)) for rows in groups])
    return {
        "quality": tuple(float(quality[rows].mean()) for rows in groups),
        "lower quartile": tuple(quartiles[:, 0].tolist()),
        "median": tuple(quartiles[:, 1].tolist()),
        "upper quartile": tuple(quartiles[:, 2].tolist()),
    }


def _identities(
    features: Features, first: np.ndarray, second: np.ndarray, same: np.ndarray
) -> np.ndarray | None:
    """(P, 2) labels of the pairs' images, or None if any are unknown or contradict `same`."""
    identities = np.stack([features.labels[first], features.labels[second]], axis=1)
    # Labels are the images' folders, which may not be identities: in RFW, they are groups.
    consistent = ((identities[:, 0] == identities[:, 1]) == same).all()
    return identities if (identities >= 0).all() and consistent else None


def evaluate_embedder(
    embedder: Embedder,
    images: ReadableImages,
    pairs: PairList,
    name: str = "",
    *,
    resamples: int = 1000,
    maximum_unreadable: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Evaluate a model on pairs of images by LFW's protocol, with flip fusion.

    Args:
        embedder: the model.
        images: the images, as ``open_pairs`` returns them.
        pairs: the pairs as indices of the images.
        name: the name of the set of pairs.
        resamples: number of bootstrap replicates; 0 for no intervals.
        maximum_unreadable: how many images may be unreadable; pairs with such an image are left
            out.
        progress: called with (images done, total).

    Raises:
        ValueError: too many images are unreadable, or there are too few pairs.
    """
    features = embed_features(
        embedder, images, source=name, maximum_unreadable=maximum_unreadable, progress=progress
    )
    result = pair_result(features, pairs, resamples, name)
    return replace(result, origin=features.origin)
