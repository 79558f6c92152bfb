"""Choose a model's thresholds on identities unseen in training; store them in its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from margrave.evaluation import Origin, Result
from margrave.former_names import current_card
from margrave.inference import Embedder, Features
from margrave.models import OperatingPoint, ScoreReference, open_model, save_card
from margrave.protocols.all_to_all import compare_all
from margrave.protocols.contract import EvaluationOptions
from margrave.quantity import quantity


def choose_operating_points(
    features: Features,
    far_targets: Sequence[float],
    distractors: Features | None = None,
    options: EvaluationOptions | None = None,
) -> tuple[OperatingPoint, ...]:
    """Choose, for each FAR target, the lowest threshold whose FAR does not exceed the target.

    The FAR is measured over all impostor pairs of the features, and over their pairs with the
    distractors.

    Args:
        features: labeled features of people like those in the application.
        far_targets: FAR targets, each in (0, 1).
        distractors: features of other identities, for more impostor pairs.
        options: options that do not depend on the protocol.

    Returns:
        One operating point per FAR target.

    Raises:
        ValueError: there are too few impostor pairs to allow one false accept at a FAR target.
    """
    comparison = compare_all(features, distractors, far_targets, options)
    image_set = features.description["images"]["source"] or Path(features.display_name).name
    result = replace(comparison.result(), origin=replace(features.origin, images=image_set))
    return points_of_result(result, far_targets)


def points_of_result(
    result: Result, far_targets: Sequence[float] | None = None
) -> tuple[OperatingPoint, ...]:
    """Extract the operating points of a result.

    Args:
        result: a result with TAR at FAR and thresholds, such as a result of the protocol all-to-all
            or pairs.
        far_targets: the FARs to extract; by default all with enough impostor pairs.

    Raises:
        ValueError: the result has no thresholds at all, or one of the FARs has no threshold or too
            few impostor pairs.
    """
    figure_of_far = {
        float(figure.at["FAR"]): figure
        for figure in result.figures
        if figure.metric == "TAR" and set(figure.at) == {"FAR"} and figure.threshold is not None
    }
    if not figure_of_far:
        raise ValueError(
            f"results of protocol {result.protocol!r} have no thresholds; evaluate all-to-all or "
            "pairs instead"
        )
    if far_targets is None:
        far_targets = [far for far, figure in figure_of_far.items() if not figure.too_few]
        if not far_targets:
            raise ValueError(
                f"{result.name or 'the result'} has too few impostor pairs for a threshold at any "
                "of its FARs; add identities, or use more pairs"
            )
    counts = result.counts
    # Some results, such as those of the protocol pairs, count only all pairs and the genuine ones.
    impostors = counts.get("impostors", counts.get("pairs", 0) - counts.get("genuine", 0))
    measured_on = result.origin.images or result.name
    if "identities" in counts:
        size = (
            f"{quantity(counts['images'], 'image')} of {quantity(counts['identities'], 'person')}"
        )
        measured_on = f"{size} in {measured_on}"
    points = []
    for far in far_targets:
        if far not in figure_of_far:
            available = ", ".join(f"{other_far:g}" for other_far in sorted(figure_of_far))
            raise ValueError(
                f"the result has no threshold for FAR {far:g}; available FARs: {available}"
            )
        figure = figure_of_far[far]
        if figure.too_few:
            # Subtracting 1e-6 compensates for rounding in 1 / far.
            raise ValueError(
                f"FAR {far:g} needs at least {math.ceil(1 / far - 1e-6):,} impostor pairs, but "
                f"{result.origin.images or 'the result'} has only {impostors:,}; add identities or "
                "distractors (--distractors), or choose a larger FAR"
            )
        points.append(
            OperatingPoint(
                far=far,
                # Never None in `figure_of_far`; `or 0.0` is for the type checker.
                threshold=float(figure.threshold or 0.0),
                threshold_interval=figure.threshold_interval,
                true_accept_rate=figure.value,
                true_accept_interval=figure.interval,
                impostors=impostors,
                measured_on=measured_on,
                flips=bool(result.origin.preparation.get("flips", True)),
            )
        )
    return tuple(points)


def save_operating_points(
    model: str | Path,
    points: Sequence[OperatingPoint],
    reference: ScoreReference | None = None,
) -> Path:
    """Store operating points in the model's card, replacing those with the same FAR.

    Args:
        model: the model file, run folder or .onnx file.
        points: the operating points.
        reference: the score reference to store with them; None keeps the current one.

    Returns:
        The file that contains the card.
    """
    opened = open_model(model)
    fars = {point.far for point in points}
    remaining = [point for point in opened.card.operating_points if point.far not in fars]
    card = replace(opened.card, operating_points=(*remaining, *points))
    return save_card(opened.path, card if reference is None else replace(card, reference=reference))


def check_features_match_model(model: str | Path, origin: Origin, what: str) -> None:
    """Check that features or results were made by this model.

    Args:
        model: the model file, run folder or .onnx file.
        origin: the features' or results' origin.
        what: the features or results, as messages name them.

    Raises:
        ValueError: the features or results were made with other weights or other preprocessing.
    """
    opened = open_model(model)
    actual = {"weights": origin.weights, **current_card(origin.preparation)}
    # A preprocessing setting that the card does not have is expected to be as it is in `actual`.
    expected = {name: _as_json(getattr(opened.card, name, actual[name])) for name in actual}
    expected["weights"] = opened.digest
    if differing := [name for name in actual if _as_json(actual[name]) != expected[name]]:
        raise ValueError(
            f"{what} were made by a model other than {opened.path}: {', '.join(differing)} "
            "differ; embed the images with this model first"
        )


def _as_json(value: object) -> object:
    """Turn tuples into lists, as JSON does."""
    return list(value) if isinstance(value, tuple) else value


def operating_point(embedder: Embedder, far: float | None = None) -> OperatingPoint:
    """The model's operating point for a FAR, by default the one with the smallest FAR.

    Raises:
        ValueError: the model has no operating points, or none for this FAR.
    """
    points = {point.far: point for point in embedder.card.operating_points}
    if not points:
        raise ValueError(
            "this model has no threshold yet: choose one with margrave threshold MODEL FEATURES "
            "--far 1e-4, using features of people like those in your application"
        )
    chosen = min(points) if far is None else far
    if chosen not in points:
        available = ", ".join(f"{other_far:g}" for other_far in sorted(points))
        raise ValueError(
            f"this model has no threshold for FAR {chosen:g}; available FARs: {available}; "
            "add others with margrave threshold"
        )
    return points[chosen]
