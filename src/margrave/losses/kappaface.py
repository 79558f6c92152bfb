"""KappaFace: the margin adapts to class concentration and class size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from margrave.losses.angles import BeyondPi, add_angle
from margrave.losses.contract import LOSSES, Context, Loss

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register("kappaface")
@dataclass(frozen=True, kw_only=True)
class KappaFace(Loss):
    """Classes with scattered features or few samples get a larger margin.

    T = cos(θ_y + m₀·ψ_y), N_j = cosθ_j. Class c's ψ_c = γ·w_κ + (1 − γ)·w_s is 1 in the first epoch
    and recomputed after each epoch: w_κ from the class's von Mises–Fisher concentration, w_s from
    the number of its samples (`margrave.statistics.class_concentration`).

    Source: KappaFace, arXiv 2201.07394, equations 7 to 14; implemented from the paper only.

    Attributes:
        margin: m₀ in radians, 0 ≤ m₀ < π.
        temperature: how strongly w_κ depends on the standardized concentration.
        concentration_share: γ, the weight of concentration relative to size, in [0, 1].
        estimator: source of the features: ``momentum_encoder`` (a second forward pass, through a
            network with averaged weights), ``memory_buffer`` (one stored vector per training image)
            or ``online`` (the features of the training forward pass, at no extra cost).
        memory_update_weight: weight of an image's new feature relative to its stored vector, in
            (0, 1]; used by ``memory_buffer`` only.
        beyond_pi: see `margrave.losses.angles.add_angle`.

    >>> import torch
    >>> context = Context(margin_weight=torch.tensor([0.0, 1.0]))
    >>> KappaFace(margin=0.5).target(torch.tensor([0.0, 0.0]), context)
    tensor([ 0.0000, -0.4794])
    """

    margin: float = 0.8
    temperature: float = 0.4
    concentration_share: float = 0.7
    estimator: Literal["momentum_encoder", "memory_buffer", "online"] = "online"
    memory_update_weight: float = 0.9
    beyond_pi: BeyondPi = "monotone"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("margin", 0 <= self.margin < math.pi, "in [0, π)")
        self.require("temperature", self.temperature > 0, "above 0")
        self.require("concentration_share", 0 <= self.concentration_share <= 1, "in [0, 1]")
        self.require("memory_update_weight", 0 < self.memory_update_weight <= 1, "in (0, 1]")

    @property
    def needs(self) -> dict[str, dict[str, Any]]:
        names = ("temperature", "concentration_share", "estimator", "memory_update_weight")
        return {"class_concentration": {name: getattr(self, name) for name in names}}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        return add_angle(cosine, self.margin * context["margin_weight"], self.beyond_pi)
