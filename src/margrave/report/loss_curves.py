"""What a loss does to targets and negatives, in a context that sliders choose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from margrave.losses import Context, Loss

STEPS = 1440
"""Steps of the grid of angles from 0 to 180 degrees."""
TARGET_DEGREES = tuple(range(10, 100, 10))
NUM_CLASSES = 1000
HARDEST_DEGREES = 70
"""For the gradient's scale: the angle of the nearest negative; all others are at 90 degrees."""
GRADIENT_DEGREES = tuple(range(0, 122, 2))


@dataclass(frozen=True)
class Axis:
    """Something that a slider changes.

    Attributes:
        name: the hyperparameter's or the context value's name.
        label: the slider's label.
        values: its steps.
        default: index of the initial step.
    """

    name: str
    label: str
    values: tuple[Any, ...]
    default: int


CONTEXTS = (
    Axis(
        "feature_norm",
        "feature norm (mean 20, std 5)",
        tuple(float(norm) for norm in range(5, 40, 5)),
        3,
    ),
    Axis("margin_weight", "class's margin weight ψ", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 3),
    Axis(
        "mean_target_cosine", "t, mean target cosine", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 3
    ),
    Axis("margin_noise", "drawn margin, in std from the mean", (-2.0, -1.0, 0.0, 1.0, 2.0), 2),
    Axis("iteration", "training steps so far", (0, 1000, 3000, 10_000, 30_000, 100_000), 5),
)
TARGET_ANGLE = Axis("target_angle", "target's angle θ_y, for the negatives", TARGET_DEGREES, 4)
NORM_MEAN, NORM_STD = 20.0, 5.0


def _context(values: Mapping[str, Any], samples: int) -> Context:
    import torch

    chosen = {axis.name: axis.values[axis.default] for axis in CONTEXTS} | dict(values)
    per_sample = ("feature_norm", "margin_weight", "margin_noise")
    tensors = {
        name: torch.full((samples,) if name in per_sample else (), float(chosen[name]),
                         dtype=torch.float64)
        for name in (axis.name for axis in CONTEXTS)
    }  # fmt: skip
    return Context(
        **tensors,
        feature_norm_mean=torch.tensor(NORM_MEAN, dtype=torch.float64),
        feature_norm_std=torch.tensor(NORM_STD, dtype=torch.float64),
    )


def target_cosines(loss: Loss, cosine: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    """T at target cosines."""
    import torch

    context = _context(values, len(cosine))
    return loss.modify_target(torch.from_numpy(cosine), context).numpy()


def negative_cosines(
    loss: Loss, cosines: np.ndarray, target_degrees: float, values: Mapping[str, Any]
) -> np.ndarray:
    """N at cosines of negatives, for one target."""
    import torch

    target = torch.tensor([math.cos(math.radians(target_degrees))], dtype=torch.float64)
    rows = torch.from_numpy(cosines)[None]
    return loss.negatives(rows, target, _context(values, 1)).numpy()[0]


def grid_cosines() -> np.ndarray:
    """The cosines of the grid of angles."""
    return np.cos(np.linspace(0, math.pi, STEPS + 1))


def boundary_degrees(loss: Loss, values: Mapping[str, Any]) -> np.ndarray:
    """For each of the gradient's angles θ_y, the θ_j in degrees below which class j would win.

    It is the largest angle with N_j ≥ T: with two classes, the decision boundary.
    """
    import torch

    target = torch.cos(torch.deg2rad(torch.tensor(GRADIENT_DEGREES, dtype=torch.float64)))
    context = _context(values, len(target))
    modified = loss.modify_target(target, context).numpy()
    cosines = grid_cosines()[::4]
    rows = torch.from_numpy(cosines)[None].expand(len(target), -1)
    wins = loss.negatives(rows, target, context).numpy() >= modified[:, None]
    last = np.where(wins.any(axis=1), wins.shape[1] - 1 - wins[:, ::-1].argmax(axis=1), 0)
    return last * 180.0 / (len(cosines) - 1)


def gradient_scales(loss: Loss, values: Mapping[str, Any]) -> np.ndarray:
    """|∂L/∂cosθ_y| / s at each of the gradient's angles; a learned bias has its initial value."""
    import torch
    from torch.nn.functional import logsigmoid

    target = torch.cos(torch.deg2rad(torch.tensor(GRADIENT_DEGREES, dtype=torch.float64)))
    target.requires_grad_()
    context = _context(values, len(target))
    hardest = math.cos(math.radians(HARDEST_DEGREES))
    cosines = torch.tensor([[hardest, 0.0]], dtype=torch.float64).expand(len(target), -1)
    negatives = loss.modify_negatives(cosines, target.detach(), context)
    others = torch.tensor([0.0, math.log(NUM_CLASSES - 2)], dtype=torch.float64)
    own = loss.scale * loss.modify_target(target, context)
    terms = loss.sigmoid_terms(NUM_CLASSES)
    if terms is None:
        logits = torch.cat([own[:, None], loss.scale * negatives + others], dim=1)
        cross_entropy = torch.logsumexp(logits, dim=1) - own
    else:  # Its negatives do not depend on the target.
        cross_entropy = -terms.target_weight * logsigmoid(own + terms.initial_bias)
    asked: list[bool] = []

    def of_batch() -> torch.Tensor:
        asked.append(True)
        return cross_entropy.detach()

    changed = loss.modify_cross_entropy(cross_entropy, of_batch)
    # What depends on the rest of the batch cannot be drawn: these angles are no batch.
    total = (cross_entropy if asked else changed).sum()
    (gradient,) = torch.autograd.grad(total, target)
    return abs(gradient.numpy()) / loss.scale
