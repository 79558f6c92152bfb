"""A run's curves as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _smoothed(values: np.ndarray, width: int = 15) -> np.ndarray:
    """A running mean whose window shrinks towards the ends."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    position = np.arange(len(values))
    low = np.maximum(position - width // 2, 0)
    high = np.minimum(position + width // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_curves(
    lines: Sequence[Mapping[str, Any]],
    path: Path,
    rocs: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> None:
    """Draw loss, feature norm, learning rate and the ROC of each evaluation.

    Args:
        lines: a run's metrics.
        path: the picture to write; its ending says the format.
        rocs: by name, false and true accept rates.

    Raises:
        ValueError: no training line to draw.
    """
    from matplotlib.figure import Figure

    training = [line for line in lines if line["kind"] == "training"]
    if not training:
        raise ValueError("the run has no line of training metrics; lower training.log_steps")
    epoch = np.array([line["epoch"] for line in training])
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    panels = (("loss", "loss"), ("feature_norm", "mean feature norm"))
    for panel, (key, title) in zip(axes.flat, panels, strict=False):
        values = np.array([line[key] for line in training])
        panel.plot(epoch, values, color="0.8", linewidth=0.8)
        panel.plot(epoch, _smoothed(values), color="tab:blue")
        panel.set(title=title, xlabel="epoch")
    axes[1, 0].plot(epoch, [line["learning_rate"] for line in training], color="tab:orange")
    axes[1, 0].set(title="learning rate", xlabel="epoch")
    for name, (false_accept, true_accept) in (rocs or {}).items():
        axes[1, 1].plot(false_accept, true_accept, label=name)
    axes[1, 1].set(title="ROC", xlabel="false accept rate", ylabel="true accept rate")
    axes[1, 1].plot([0, 1], [0, 1], color="0.8", linestyle="--", linewidth=0.8)
    if rocs:
        axes[1, 1].legend(loc="lower right")
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
