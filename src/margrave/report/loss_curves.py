"""A loss's curves over target and negative angles, for context values that the sliders set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from margrave.losses import Context, Loss

STEPS = 1440
"""Number of steps in the grid of angles from 0 to 180 degrees."""
TARGET_DEGREES = tuple(range(10, 100, 10))
"""The steps of the slider that sets the target's angle in the chart of the negatives."""
NUM_CLASSES = 1000
"""For the gradient scale: the number of classes."""
HARDEST_DEGREES = 70
"""For the gradient scale: the angle of the nearest negative; all others are at 90 degrees."""
GRADIENT_DEGREES = tuple(range(0, 122, 2))
"""The target angles at which the decision boundary and the gradient scale are computed."""


@dataclass(frozen=True)
class Axis:
    """A hyperparameter or context value that a slider sets.

    Attributes:
        name: the hyperparameter's or the context value's name.
        label: the slider's label.
        values: the slider's steps.
        default_index: index of the initial step in `values`.
    """

    name: str
    label: str
    values: tuple[Any, ...]
    default_index: int


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
    Axis("margin_noise", "sampled margin, in std from the mean", (-2.0, -1.0, 0.0, 1.0, 2.0), 2),
    Axis("iteration", "training steps so far", (0, 1000, 3000, 10_000, 30_000, 100_000), 5),
)
TARGET_ANGLE = Axis("target_angle", "target's angle θ_y, for the negatives", TARGET_DEGREES, 4)
NORM_MEAN, NORM_STD = 20.0, 5.0
"""The running mean and std of the feature norm in the context."""


def _context(values: Mapping[str, Any], num_samples: int) -> Context:
    """The context that losses read: `values` by name, else the defaults of ``CONTEXTS``."""
    import torch

    settings = {axis.name: axis.values[axis.default_index] for axis in CONTEXTS} | dict(values)
    per_sample = ("feature_norm", "margin_weight", "margin_noise")
    tensors = {
        name: torch.full((num_samples,) if name in per_sample else (), float(settings[name]),
                         dtype=torch.float64)
        for name in (axis.name for axis in CONTEXTS)
    }  # fmt: skip
    return Context(
        **tensors,
        feature_norm_mean=torch.tensor(NORM_MEAN, dtype=torch.float64),
        feature_norm_std=torch.tensor(NORM_STD, dtype=torch.float64),
    )


def modified_targets(loss: Loss, cosines: np.ndarray, values: Mapping[str, Any]) -> np.ndarray:
    """The modified target cosine T at each target cosine, for these context values."""
    import torch

    context = _context(values, len(cosines))
    return loss.modify_target(torch.from_numpy(cosines), context).numpy()


def modified_negatives(
    loss: Loss, cosines: np.ndarray, target_degrees: float, values: Mapping[str, Any]
) -> np.ndarray:
    """The modified cosine N at each negative cosine, for a target at `target_degrees`."""
    import torch

    target = torch.tensor([math.cos(math.radians(target_degrees))], dtype=torch.float64)
    one_sample = torch.from_numpy(cosines)[None]
    return loss.negatives(one_sample, target, _context(values, 1)).numpy()[0]


def grid_cosines() -> np.ndarray:
    """The cosines of the grid's ``STEPS + 1`` angles."""
    return np.cos(np.linspace(0, math.pi, STEPS + 1))


def boundary_degrees(loss: Loss, values: Mapping[str, Any]) -> np.ndarray:
    """The two-class decision boundary: the θ_j in degrees at each θ_y in ``GRADIENT_DEGREES``.

    The boundary is the largest θ_j with N_j ≥ T, or 0 if no θ_j has N_j ≥ T. At a smaller θ_j, the
    other class j wins.
    """
    import torch

    target = torch.cos(torch.deg2rad(torch.tensor(GRADIENT_DEGREES, dtype=torch.float64)))
    context = _context(values, len(target))
    modified_target = loss.modify_target(target, context).numpy()
    cosines = grid_cosines()[::4]  # In steps of 0.5 degrees.
    negative_cosines = torch.from_numpy(cosines)[None].expand(len(target), -1)
    modified = loss.negatives(negative_cosines, target, context).numpy()
    wins = modified >= modified_target[:, None]
    last_win = np.where(wins.any(axis=1), wins.shape[1] - 1 - wins[:, ::-1].argmax(axis=1), 0)
    return last_win * 180.0 / (len(cosines) - 1)


def gradient_scales(loss: Loss, values: Mapping[str, Any]) -> np.ndarray:
    """|∂L/∂cosθ_y| / s at each θ_y in ``GRADIENT_DEGREES``, for the loss's scale s.

    A learned bias has its initial value.
    """
    import torch
    from torch.nn.functional import logsigmoid

    target = torch.cos(torch.deg2rad(torch.tensor(GRADIENT_DEGREES, dtype=torch.float64)))
    target.requires_grad_()
    context = _context(values, len(target))
    hardest = math.cos(math.radians(HARDEST_DEGREES))
    negative_cosines = torch.tensor([[hardest, 0.0]], dtype=torch.float64).expand(len(target), -1)
    negatives = loss.modify_negatives(negative_cosines, target.detach(), context)
    # The second column stands for the n = NUM_CLASSES - 2 negatives at 90 degrees: adding log n
    # counts it n times.
    log_counts = torch.tensor([0.0, math.log(NUM_CLASSES - 2)], dtype=torch.float64)
    target_logit = loss.scale * loss.modify_target(target, context)
    terms = loss.sigmoid_terms(NUM_CLASSES)
    if terms is None:
        logits = torch.cat([target_logit[:, None], loss.scale * negatives + log_counts], dim=1)
        cross_entropy = torch.logsumexp(logits, dim=1) - target_logit
    else:  # The terms of the negatives do not depend on the target.
        cross_entropy = -terms.target_weight * logsigmoid(target_logit + terms.initial_bias)
    batch_reads: list[bool] = []

    def batch_cross_entropy() -> torch.Tensor:
        batch_reads.append(True)
        return cross_entropy.detach()

    modified_entropy = loss.modify_cross_entropy(cross_entropy, batch_cross_entropy)
    # These angles are not a training batch. So leave out a modification that reads the batch.
    total = (cross_entropy if batch_reads else modified_entropy).sum()
    (gradient,) = torch.autograd.grad(total, target)
    return abs(gradient.numpy()) / loss.scale
