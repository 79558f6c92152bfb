"""The loss contract: what a loss may know and what it must answer.

Shapes by letter: B batch, C all classes, K classes at hand (all, a chunk, a shard or a sample).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from margrave.registry import Registry

# Every loss file imports torch for types alone or within functions: `margrave losses` lists the
# losses in a tenth of the time that importing torch takes.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a loss knows beyond its cosines, made once per step by the head's statistics.

    Attributes:
        feature_norm: (B,) ‖x‖ of the unnormalised embeddings, attached to the graph.
        feature_norm_mean: () running mean of the clipped norms.
        feature_norm_deviation: () running standard deviation of the clipped norms.
        mean_target_cosine: () running mean of cosθ_y.
        margin_weight: (B,) weight of the margin of each sample's class.
        iteration: () training steps so far, this one included.
    """

    feature_norm: Tensor | None = None
    feature_norm_mean: Tensor | None = None
    feature_norm_deviation: Tensor | None = None
    mean_target_cosine: Tensor | None = None
    margin_weight: Tensor | None = None
    iteration: Tensor | None = None

    def of_samples(self, rows: slice) -> Context:
        """The context of some of the batch's samples."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Context(
            **{
                name: value if value is None or value.ndim == 0 else value[rows]
                for name, value in values.items()
            }
        )

    def __getitem__(self, name: str) -> Tensor:
        """A field that must be there.

        Raises:
            ValueError: the field is unknown or was not supplied.

        >>> Context()["feature_norm"]
        Traceback (most recent call last):
            ...
        ValueError: this loss reads 'feature_norm', which the context does not hold; \
name the statistic in the loss's needs
        """
        value = getattr(self, name, None)
        if value is None:
            raise ValueError(
                f"this loss reads {name!r}, which the context does not hold; "
                "name the statistic in the loss's needs"
            )
        return value


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A margin loss as a pure function of cosines.

    loss = −log( e^{s·T} / (e^{s·T} + Σ_{j≠y} e^{s·N_j}) ) + penalty, where T is `target` and N_j is
    `negatives`. One law holds: `negatives` is elementwise over classes, so every head may apply it
    to any part of them. A subclass overrides `target`, `negatives` or both; its fields are its
    hyperparameters and its configuration schema at once.

    Attributes:
        scale: s, the inverse temperature.
        straight_through: give the margin no gradient of its own, so dT/d cosθ_y = 1 as in
            InsightFace's code. The value is unchanged; the gradient is no longer exact.
    """

    normalized: ClassVar[bool] = True
    """Whether the head hands cosines (True) or inner products W_jᵀx + b_j (False)."""

    scale: float = 64.0
    straight_through: bool = False

    def __post_init__(self) -> None:
        for name, value in self.settings().items():
            if isinstance(value, float):
                self.require(name, math.isfinite(value), "finite")
        self.require("scale", self.scale > 0, "above 0")

    def require(self, field: str, holds: bool, rule: str) -> None:
        """Raise the ValueError of a hyperparameter out of its range."""
        if not holds:
            raise ValueError(
                f"{type(self).__name__}.{field} = {getattr(self, field)!r} must be {rule}"
            )

    @property
    def needs(self) -> Mapping[str, Mapping[str, Any]]:
        """The statistics this loss reads: name -> settings."""
        return {}

    def target(self, cosine: Tensor, context: Context) -> Tensor:
        """T (B,): the target's modified cosine, from the true one (B,)."""
        del context
        return cosine

    def negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        """N (B, K): the other classes' modified cosines, elementwise over classes.

        `target_cosine` (B,) is the true cosθ_y without gradient: it may only decide, not flow.
        """
        del target_cosine, context
        return cosines

    def negatives_and_slope(
        self, cosines: Tensor, target_cosine: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None] | None:
        """N (B, K), and dN/d cosθ_j (B, K) or None where it is 1 everywhere; for speed alone.

        None, as by default where `negatives` is overridden, leaves the slope to autograd. A loss
        that answers promises that its negatives read nothing of the context with a gradient. The
        slope must be a tensor of its own.
        """
        del target_cosine, context
        return (cosines, None) if type(self).negatives is Loss.negatives else None

    def hard_negatives(self, cosines: Tensor, target_cosine: Tensor, context: Context) -> Tensor:
        """(B, K) bool: the negatives that this loss re-weights. None by default."""
        import torch

        del target_cosine, context
        return torch.zeros_like(cosines, dtype=torch.bool)

    def penalty(self, context: Context) -> Tensor | None:
        """(B,) additive regulariser, or None."""
        del context
        return None

    def modify_target(self, cosine: Tensor, context: Context) -> Tensor:
        """What heads call: `target`, with the gradient that `straight_through` asks for."""
        target = self.target(cosine, context)
        return cosine + (target - cosine).detach() if self.straight_through else target

    def settings(self) -> dict[str, Any]:
        """The hyperparameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


LOSSES: Registry[type[Loss]] = Registry("loss")
