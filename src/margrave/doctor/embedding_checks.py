"""Checks a model's embeddings: collapse, image preparation, relation of norm to image quality."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from margrave.data import FaceImages, ReadableImages, balanced_pairs, max_balanced_pairs
from margrave.doctor.findings import Finding
from margrave.evaluation import area_under, roc_curve
from margrave.inference import Embedder
from margrave.models.onnx_network import OnnxNetwork
from margrave.models.pixel_statistics import ColorOrder
from margrave.progress import Progress

SCALES = (1.0, 0.5, 0.25, 0.125)
"""Scale factors that lower image quality, from the best quality to the worst: images are shrunk by
a factor, then enlarged again."""
NORMALIZATIONS = {
    "[-1, 1] (mean 0.5, std 0.5)": (0.5, 0.5),
    "[0, 1] (mean 0, std 1)": (0.0, 1.0),
    "ImageNet's (mean 0.449, std 0.226)": (0.449, 0.226),
    "0 to 255 (mean 0, std 1/255)": (0.0, 1 / 255),
}
"""Normalizations to try: name -> mean and std of pixels in [0, 1]."""
MIN_AREA_GAIN = 0.03
"""Gain in the area under the ROC curve (AUC) above which another preparation counts as better. A
smaller gain also counts if it halves 1 - AUC, see `MIN_HALVING_GAIN`."""
MIN_HALVING_GAIN = 0.005
"""Gain in AUC below which another preparation never counts as better."""
MIN_RANK_CORRELATION = 0.3
"""Absolute rank correlation above which the feature norm counts as related to image quality."""
PIXELS = 16
"""Side length of the small images from whose pixels `better_than_pixels` computes scores."""


def check_collapse(
    embedder: Embedder, images: ReadableImages, max_images: int = 32
) -> Iterator[Finding]:
    """Check for embeddings that are the same for all faces, infinite or NaN."""
    indices = np.linspace(0, len(images) - 1, min(max_images, len(images))).astype(int)
    embeddings = _embed_readable(embedder, images, indices)
    if not len(embeddings):
        return
    if not np.isfinite(embeddings).all():
        yield Finding(
            fault="non_finite_embeddings",
            severity="serious",
            message="the model's embeddings of ordinary faces are infinite or NaN",
            remedy="use an earlier checkpoint, or compute in float32",
        )
        return
    unit = _unit(embeddings)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    if np.median(cosines) > 0.95:
        yield Finding(
            fault="collapsed_embeddings",
            severity="serious",
            message=f"all faces get the same embedding (median cosine {np.median(cosines):.3f})",
            remedy="the model has not learned, or its batch norms were trained on other images: "
            "check mean, std and color order, and train longer or with a lower learning rate",
            figures={"median_cosine": round(float(np.median(cosines)), 4)},
        )


def _embed_readable(embedder: Embedder, images: ReadableImages, indices: np.ndarray) -> np.ndarray:
    """(R, D) embeddings of the R images that can be read, in the order of `indices`."""
    unreadable: dict[int, str] = {}
    embeddings, _ = embedder.embed_images(images, indices, flips=False, unreadable=unreadable)
    return embeddings[~np.isin(indices, list(unreadable))]


class _SwappedColors:
    """Images with the red and blue channels exchanged."""

    def __init__(self, images: ReadableImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def read(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.images.read(index)[..., ::-1])


def check_preparation(
    embedder: Embedder,
    images: FaceImages,
    max_pairs: int = 400,
    progress: Progress = lambda done, total: None,
    color_order: ColorOrder | None = None,
) -> Iterator[Finding]:
    """Check whether the model separates faces better with another color order or normalization.

    Args:
        embedder: the model, with the preparation of images that its card states.
        images: labeled faces.
        max_pairs: maximum number of pairs of faces to compare.
        progress: called with (preparations done, total preparations).
        color_order: the color order that the weights are assumed to expect, see `OpenedModel`.
    """
    pairs = _sample_pairs(images, max_pairs)
    if pairs is None:
        yield Finding(
            fault="preparation_not_checked",
            severity="unchecked",
            message="color order and normalization were not tried: the faces allow fewer than ten "
            "pairs of the same identity",
            remedy="give at least 10 identities with two images each",
            share=0.0,
        )
        return
    card = embedder.card
    card_statistics = np.mean(card.mean), np.mean(card.std)
    # A Margrave model (`color_order` None) takes RGB images, whatever its original weights took.
    opposite = "rgb" if color_order == "bgr" else "bgr"
    preparations = {"as it is": (embedder, images), opposite: (embedder, _SwappedColors(images))}
    # A network that takes uint8 normalizes the pixels itself.
    if not (isinstance(embedder.backbone, OnnxNetwork) and embedder.backbone.takes_uint8):
        preparations |= {
            name: (replace(embedder, card=replace(card, mean=mean, std=std)), images)
            for name, (mean, std) in NORMALIZATIONS.items()
            if not np.allclose((mean, std), card_statistics, atol=1e-3)
        }
    scores: dict[str, np.ndarray] = {}
    for done, (name, (changed_embedder, faces)) in enumerate(preparations.items(), 1):
        # Unreadable images get zero embeddings. The same images are unreadable with every
        # preparation, so the scores remain comparable.
        embeddings, _ = changed_embedder.embed_images(
            faces, pairs.indices, flips=False, unreadable={}
        )
        scores[name] = pairs.cosines(np.nan_to_num(embeddings))
        progress(done, len(preparations))
    same = pairs.same
    areas = {name: _area(cosines, same) for name, cosines in scores.items()}
    figures = {name: round(area, 4) for name, area in areas.items()}
    best = max(areas, key=lambda name: areas[name])
    gain = areas[best] - areas["as it is"]
    halves_error = gain > MIN_HALVING_GAIN and 1 - areas[best] < (1 - areas["as it is"]) / 2
    if (gain > MIN_AREA_GAIN or halves_error) and _is_significant(
        scores[best], scores["as it is"], same
    ):
        comparison = (
            f"area under the ROC curve {areas[best]:.3f} instead of {areas['as it is']:.3f}"
        )
        wrong_colors = best == opposite
        better = f"{opposite.upper()} images" if wrong_colors else f"another normalization, {best}"
        option = f"--color-order {opposite}" if color_order else "the opposite --color-order"
        yield Finding(
            fault="wrong_color_order" if wrong_colors else "wrong_normalization",
            severity="serious",
            message=f"the model separates these faces better with {better}: {comparison}",
            remedy=f"import it again with {option}"
            if wrong_colors
            else "correct the mean and std in its card: import or save it again",
            figures=figures,
        )
    elif areas["as it is"] < 0.6:
        yield Finding(
            fault="labels_disagree",
            severity="serious",
            message="the model does not separate genuine from impostor pairs (area under the ROC "
            f"curve {areas['as it is']:.3f})",
            remedy="check the data with margrave doctor, and check that its labels belong to its "
            "images (they may be shifted by one); if both are right, the model was not trained for "
            "such faces",
            figures=figures,
        )


def better_than_pixels(embedder: Embedder, images: FaceImages, max_pairs: int = 400) -> bool:
    """Whether the cosines of embeddings separate faces better than the cosines of pixels.

    The embeddings of a network with random weights rarely do. False if there are too few pairs.
    """
    pairs = _sample_pairs(images, max_pairs)
    if pairs is None:
        return False
    unreadable: dict[int, str] = {}
    embeddings, _ = embedder.embed_images(images, pairs.indices, flips=False, unreadable=unreadable)
    pixels = np.zeros((len(pairs.indices), PIXELS**2), np.float32)
    for row, index in enumerate(pairs.indices.tolist()):
        if index not in unreadable:
            gray = cv2.cvtColor(images.read(index), cv2.COLOR_RGB2GRAY)
            small = cv2.resize(gray, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)
            pixels[row] = small.ravel() - small.mean()
    model_scores, pixel_scores = pairs.cosines(np.nan_to_num(embeddings)), pairs.cosines(pixels)
    return _is_significant(model_scores, pixel_scores, pairs.same)


@dataclass(frozen=True, eq=False)
class _SampledPairs:
    """Randomly chosen pairs of a set's images, half genuine and half impostor.

    Attributes:
        indices: (M,) indices of the images in the pairs, ascending.
        first, second: (N,) positions in `indices` of each pair's two images.
        same: (N,) bool, True for genuine pairs.
    """

    indices: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def cosines(self, vectors: np.ndarray) -> np.ndarray:
        """(N,) cosine of each pair.

        Args:
            vectors: (M, D) a vector for each image in `indices`.
        """
        unit = _unit(vectors)
        return (unit[self.first] * unit[self.second]).sum(axis=1)


def _sample_pairs(images: FaceImages, max_pairs: int) -> _SampledPairs | None:
    """Draw balanced pairs, at most `max_pairs`; None if the labels do not allow 20 pairs."""
    labels = np.asarray(images.labels)
    # `balanced_pairs` needs a multiple of 20: each of its 10 folds is half genuine pairs.
    num_pairs = min(max_pairs // 20 * 20, max_balanced_pairs(labels))
    if not num_pairs:
        return None
    pairs = balanced_pairs(labels, num_pairs, seed=0)
    indices, positions = np.unique(np.stack([pairs.first, pairs.second]), return_inverse=True)
    first, second = positions.reshape(2, -1)
    return _SampledPairs(indices, first, second, np.asarray(pairs.same, bool))


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) vectors scaled to unit length; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _area(scores: np.ndarray, same: np.ndarray) -> float:
    """The area under the ROC curve."""
    return float(area_under(roc_curve(scores, same)))


def _is_significant(
    better: np.ndarray, worse: np.ndarray, same: np.ndarray, resamples: int = 200
) -> bool:
    """Whether the scores `better` have the larger AUC in at least 97 % of bootstrap replicates.

    Args:
        better: (N,) scores of pairs, to be tested.
        worse: (N,) scores of the same pairs, to compare with.
        same: (N,) bool, True for genuine pairs.
        resamples: number of bootstrap replicates.
    """
    generator = np.random.default_rng(0)
    wins = 0
    for _ in range(resamples):
        chosen = generator.integers(len(same), size=len(same))
        wins += _area(better[chosen], same[chosen]) > _area(worse[chosen], same[chosen])
    return wins >= 0.97 * resamples


def check_quality(
    embedder: Embedder, images: ReadableImages, loss_reads_norm: bool, max_images: int = 64
) -> Iterator[Finding]:
    """Check whether the feature norm grows with image quality, as norm-adaptive margins assume.

    Args:
        embedder: the model.
        images: any faces.
        loss_reads_norm: whether the training loss uses the norm, as AdaFace and MagFace do.
        max_images: maximum number of images to use.
    """
    indices = np.linspace(0, len(images) - 1, min(max_images, len(images))).astype(int)
    originals = []
    for index in indices.tolist():
        # Skip unreadable images, which another check reports.
        with contextlib.suppress(ValueError):
            originals.append(images.read(index))
    if not originals:
        return
    # (images, scales)
    norms = np.stack(
        [
            _embedding_norms(embedder, [_degrade(image, scale) for image in originals])
            for scale in SCALES
        ],
        axis=1,
    )
    # Spearman's ρ between norm and quality over the scales of each image, averaged over images.
    # Both `ranks` and `quality` are 0 to 3 in some order, so their variances are equal.
    ranks = norms.argsort(axis=1).argsort(axis=1)
    quality = np.arange(len(SCALES))[::-1]
    covariances = ((ranks - ranks.mean()) * (quality - quality.mean())).mean(axis=1)
    rho = float(covariances.mean() / quality.var())
    means = norms.mean(axis=0)
    norms_by_resolution = ", ".join(
        f"{mean:.3g} at 1/{round(1 / scale)}" for mean, scale in zip(means, SCALES, strict=True)
    )
    figures = {
        "rank_correlation": round(rho, 3),
        "norms": {
            f"1/{round(1 / scale)}": round(float(mean), 4)
            for scale, mean in zip(SCALES, means, strict=True)
        },
    }
    if rho < -MIN_RANK_CORRELATION:
        yield Finding(
            fault="norm_against_quality",
            severity="serious" if loss_reads_norm else "warning",
            message=f"the feature norm grows as images get worse (rank correlation with quality "
            f"{rho:.2f}; mean norm by resolution: {norms_by_resolution})",
            remedy="a norm-adaptive margin then emphasizes the worst images: check that no "
            "normalization follows the embedding layer, train with AdaFace's augmentations, or use "
            "a loss that does not use the norm",
            figures=figures,
        )
    else:
        relation = "grows with" if rho > MIN_RANK_CORRELATION else "hardly depends on"
        yield Finding(
            fault="norm_and_quality",
            severity="warning" if loss_reads_norm and rho <= MIN_RANK_CORRELATION else "note",
            message=f"the feature norm {relation} image quality (rank correlation {rho:.2f}; "
            f"mean norm by resolution: {norms_by_resolution})",
            remedy="none needed"
            if rho > MIN_RANK_CORRELATION or not loss_reads_norm
            else "train longer and with AdaFace's augmentations, which add low-quality images",
            share=0.0,
            figures=figures,
        )


def _embedding_norms(embedder: Embedder, images: list[np.ndarray]) -> np.ndarray:
    """(N,) norms of the images' embeddings."""
    embeddings, _ = embedder.embed_images(images, flips=False)
    return np.linalg.norm(embeddings, axis=1)


def _degrade(image: np.ndarray, scale: float) -> np.ndarray:
    """Shrink an image by a scale factor and enlarge it again."""
    height, width = image.shape[:2]
    if scale == 1:
        return image
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC)
