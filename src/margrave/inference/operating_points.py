"""Which threshold? Chosen from people nobody trained on, kept with the model, used to decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from margrave.checkpoints import OperatingPoint, load_model, save_model
from margrave.evaluation import AllToAllResult, fuse_flips, unit_rows
from margrave.inference.embedder import Embedder, Progress
from margrave.inference.feature_store import FeatureStore, weights_digest
from margrave.inference.onnx_model import load_onnx, write_card
from margrave.inference.search_protocols import judge_all_to_all


def choose_operating_points(
    store: FeatureStore,
    far_targets: Sequence[float],
    distractors: FeatureStore | None = None,
    *,
    resamples: int = 1000,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[OperatingPoint, ...]:
    """The loosest threshold for each wanted FAR, over every two of the stored faces.

    Args:
        store: labelled features of people like those the model will meet.
        far_targets: each in (0, 1).
        distractors: features of more strangers.
        resamples: bootstrap replicates for the intervals.
        device: where products are computed.
        progress: called with (comparisons done, comparisons in all).

    Raises:
        ValueError: a FAR for which there are not even enough impostor pairs for one false accept,
            saying how many it needs.
    """
    found: AllToAllResult = judge_all_to_all(
        store,
        distractors,
        far_targets=far_targets,
        resamples=resamples,
        device=device,
        progress=progress,
    )
    for rate in found.verification:
        if rate.too_few_impostors:
            raise ValueError(
                f"FAR {rate.far_target:g} needs at least {round(1 / rate.far_target):,} impostor "
                f"pairs, {store.folder} makes {found.impostors:,}; embed more people or strangers "
                "(--distractors), or ask for a larger FAR"
            )
    return tuple(
        OperatingPoint(
            far=rate.far_target,
            threshold=rate.threshold,
            threshold_interval=rate.threshold_interval,
            true_accept_rate=rate.tar,
            true_accept_interval=rate.interval,
            impostors=found.impostors,
            measured_on=f"{found.images} images of {found.identities} people in "
            f"{store.description['images']['source'] or store.folder.name}",
            flips=store.flipped is not None,
        )
        for rate in found.verification
    )


def save_operating_points(model: str | Path, points: Sequence[OperatingPoint]) -> None:
    """Keep thresholds in the model's card; others of the same FAR are replaced.

    Args:
        model: the model file, run folder or .onnx file.
        points: the thresholds.
    """
    path = _model_file(model)
    fars = {point.far for point in points}
    state, card = (None, load_onnx(path)[1]) if _is_onnx(path) else load_model(path)
    kept = [point for point in card.operating_points if point.far not in fars]
    card = replace(card, operating_points=(*kept, *points))
    if state is None:
        write_card(path, card)
    else:
        save_model(path, state, card)


def check_made_by(model: str | Path, store: FeatureStore) -> None:
    """Whether features are this model's.

    Raises:
        ValueError: they were made by other weights, or of images prepared otherwise.
    """
    path = _model_file(model)
    if _is_onnx(path):
        backbone, card = load_onnx(path)
        weights = backbone.content_digest
    else:
        state, card = load_model(path)
        weights = weights_digest(state)
    made = store.preparation
    wanted = {name: getattr(card, name, made[name]) for name in made} | {"weights": weights}
    if differing := [name for name in made if made[name] != wanted[name]]:
        raise ValueError(
            f"the features in {store.folder} were made by other weights or otherwise prepared than "
            f"{path} says (another {', '.join(differing)}); embed the images with this model first"
        )


def _model_file(model: str | Path) -> Path:
    path = Path(model)
    return path / "model.safetensors" if path.is_dir() else path


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


@dataclass(frozen=True)
class Decision:
    """Whether two images show one person.

    Attributes:
        same: the cosine is above the threshold.
        cosine: of both embeddings.
        point: the operating point that decided.
    """

    same: bool
    cosine: float
    point: OperatingPoint


def operating_point(embedder: Embedder, far: float | None = None) -> OperatingPoint:
    """The threshold kept with the model for a FAR, by default that of the smallest FAR.

    Raises:
        ValueError: the model has none, or none for this FAR.
    """
    points = {point.far: point for point in embedder.card.operating_points}
    if not points:
        raise ValueError(
            "this model has no threshold yet: choose one with margrave threshold MODEL FEATURES "
            "--far 1e-4, from people like those it will meet"
        )
    wanted = min(points) if far is None else far
    if wanted not in points:
        known = ", ".join(f"{each:g}" for each in sorted(points))
        raise ValueError(
            f"this model has no threshold for FAR {wanted:g}; it has: {known}; "
            "margrave threshold chooses others"
        )
    return points[wanted]


def decide(
    embedder: Embedder, first: np.ndarray, second: np.ndarray, far: float | None = None
) -> Decision:
    """Whether two aligned faces are of one person, at the threshold kept with the model.

    Args:
        embedder: the model.
        first: (height, width, 3) uint8 RGB.
        second: likewise.
        far: which operating point; by default that of the smallest FAR.

    Raises:
        ValueError: no such operating point.
    """
    point = operating_point(embedder, far)
    plain, mirrored = embedder.embed_images([first, second], flips=point.flips)
    units = fuse_flips(plain, mirrored) if point.flips else unit_rows(plain)
    cosine = float(units[0] @ units[1])
    return Decision(cosine > point.threshold, cosine, point)
