"""Plot a run's metrics and ROC curves in one figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MIN_POINTS_TO_SMOOTH = 20
"""A metric with fewer values is drawn with markers instead of a running mean."""


def _running_mean(values: np.ndarray, half_window: int = 7) -> np.ndarray:
    """Mean of the 2 · half_window + 1 values centered on each value.

    Near both ends, the window shrinks symmetrically.
    """
    total = np.cumsum(np.insert(values, 0, 0.0))
    position = np.arange(len(values))
    half = np.minimum(np.minimum(position, len(values) - 1 - position), half_window)
    low, high = position - half, position + half + 1
    return (total[high] - total[low]) / (high - low)


def draw_curves(
    lines: Sequence[Mapping[str, Any]],
    path: Path,
    rocs: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> None:
    """Draw loss, feature norm, learning rate, target cosine, accuracy and ROC into an image file.

    Panels without data are omitted.

    Args:
        lines: the parsed lines of a run's metrics file.
        path: the image file to write; its extension selects the format.
        rocs: the ROC curves: name -> (false accept rates, true accept rates).

    Raises:
        ValueError: no panel has data.
    """
    from matplotlib.figure import Figure

    training = [line for line in lines if line["kind"] == "training"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    draw_functions: list[Callable[[Any], None]] = []
    if training:
        draw_functions += [
            lambda panel: _draw_metric(panel, training, "loss", "loss"),
            lambda panel: _draw_metric(panel, training, "feature_norm", "mean feature norm"),
            lambda panel: _draw_metric(panel, training, "learning_rate", "learning rate"),
        ]
    if any("target_cosine" in line for line in training):
        draw_functions.append(
            lambda panel: _draw_metric(panel, training, "target_cosine", "target cosine")
        )
    if evaluations:
        draw_functions.append(lambda panel: _draw_accuracies(panel, evaluations))
    if rocs:
        draw_functions.append(lambda panel: _draw_rocs(panel, rocs))
    if not draw_functions:
        raise ValueError("the run has neither training metrics nor evaluations to draw")
    columns = 2 if len(draw_functions) < 5 else 3
    rows = -(-len(draw_functions) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, draw in zip(panels, draw_functions, strict=False):
        draw(panel)
        panel.grid(alpha=0.3)
    for panel in panels[len(draw_functions) :]:
        panel.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_metric(panel: Any, lines: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    """Draw a metric over epochs; if it is noisy and has many values, also their running mean."""
    lines_with_metric = [line for line in lines if isinstance(line.get(key), int | float)]
    epochs = np.array([line["epoch"] for line in lines_with_metric])
    values = np.array([line[key] for line in lines_with_metric])
    has_few_values = len(values) < MIN_POINTS_TO_SMOOTH
    # The learning rate follows a schedule, so it has no noise to smooth.
    if has_few_values or key == "learning_rate":
        marker = "o" if has_few_values else None
        panel.plot(epochs, values, color="tab:blue", marker=marker)
    else:
        panel.plot(epochs, values, color="0.8", linewidth=0.8, label="logged steps")
        panel.plot(epochs, _running_mean(values), color="tab:blue", label="running mean")
        panel.legend()
    panel.set(title=title, xlabel="epoch")
    panel.ticklabel_format(useOffset=False)


def _draw_accuracies(panel: Any, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Draw the accuracy on each evaluation set over epochs."""
    for name in dict.fromkeys(line["set"] for line in evaluations):
        lines_of_set = [line for line in evaluations if line["set"] == name]
        epochs = [line["epoch"] for line in lines_of_set]
        accuracies = [100 * line["accuracy"] for line in lines_of_set]
        panel.plot(epochs, accuracies, marker="o", label=name)
    panel.set(title="accuracy %", xlabel="epoch")
    panel.legend()


def _draw_rocs(panel: Any, rocs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Draw ROC curves; the logarithmic FAR axis starts at the smallest nonzero FAR, at most 0.1."""
    min_far = 0.1
    for name, (false_accept, true_accept) in rocs.items():
        far, tar = np.asarray(false_accept), np.asarray(true_accept)
        panel.plot(far[far > 0], tar[far > 0], label=name)
        min_far = min([min_far, *far[far > 0]])
    # A matcher that guesses has TAR = FAR.
    chance = np.geomspace(min_far, 1, 50)
    panel.plot(chance, chance, color="0.8", linestyle="--", linewidth=0.8)
    panel.set(title="ROC", xlabel="FAR", ylabel="TAR", xscale="log", xlim=(min_far, 1))
    panel.set_ylim(0, 1)
    panel.legend(loc="lower right")
