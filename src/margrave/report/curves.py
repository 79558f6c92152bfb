"""A run's curves as one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FEWEST_TO_SMOOTH = 20


def _smoothed(values: np.ndarray, reach: int = 7) -> np.ndarray:
    """A running mean whose window stays centred and so shrinks towards the ends."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    position = np.arange(len(values))
    reach_of = np.minimum(np.minimum(position, len(values) - 1 - position), reach)
    low, high = position - reach_of, position + reach_of + 1
    return (total[high] - total[low]) / (high - low)


def draw_curves(
    lines: Sequence[Mapping[str, Any]],
    path: Path,
    rocs: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> None:
    """Draw loss, feature norm and learning rate over time, evaluations, and their ROC.

    Panels without anything to show are left out.

    Args:
        lines: a run's metrics.
        path: the picture to write; its ending says the format.
        rocs: by name, false and true accept rates.

    Raises:
        ValueError: nothing to draw.
    """
    from matplotlib.figure import Figure

    training = [line for line in lines if line["kind"] == "training"]
    judged = [line for line in lines if line["kind"] == "evaluation"]
    panels: list[Callable[[Any], None]] = []
    if training:
        panels += [
            lambda panel: _over_time(panel, training, "loss", "loss"),
            lambda panel: _over_time(panel, training, "feature_norm", "mean feature norm"),
            lambda panel: _over_time(panel, training, "learning_rate", "learning rate"),
        ]
    if len({line["epoch"] for line in judged}) > 1:
        panels.append(lambda panel: _accuracies(panel, judged))
    if rocs:
        panels.append(lambda panel: _roc(panel, rocs))
    if not panels:
        raise ValueError("the run has neither training metrics nor evaluations to draw")
    columns = 2 if len(panels) < 5 else 3
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, draw in zip(axes, panels, strict=False):
        draw(axis)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _over_time(panel: Any, lines: Sequence[Mapping[str, Any]], key: str, title: str) -> None:
    finite = [line for line in lines if isinstance(line.get(key), int | float)]
    epoch = np.array([line["epoch"] for line in finite])
    values = np.array([line[key] for line in finite])
    if len(values) < FEWEST_TO_SMOOTH or key == "learning_rate":
        marker = "o" if len(values) < FEWEST_TO_SMOOTH else None
        panel.plot(epoch, values, color="tab:blue", marker=marker)
    else:
        panel.plot(epoch, values, color="0.8", linewidth=0.8, label="each step logged")
        panel.plot(epoch, _smoothed(values), color="tab:blue", label="running mean")
        panel.legend()
    panel.set(title=title, xlabel="epoch")
    panel.ticklabel_format(useOffset=False)


def _accuracies(panel: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(line["set"] for line in lines):
        own = [line for line in lines if line["set"] == name]
        accuracy = [100 * line["accuracy"] for line in own]
        panel.plot([line["epoch"] for line in own], accuracy, marker="o", label=name)
    panel.set(title="accuracy %", xlabel="epoch")
    panel.legend()


def _roc(panel: Any, rocs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    for name, (false_accept, true_accept) in rocs.items():
        panel.plot(false_accept, true_accept, label=name)
    panel.plot([0, 1], [0, 1], color="0.8", linestyle="--", linewidth=0.8)
    panel.set(title="ROC", xlabel="false accept rate", ylabel="true accept rate")
    panel.legend(loc="lower right")
