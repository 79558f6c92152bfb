"""What a running statistic sees, keeps and gives."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from margrave.distributed import World, owned_classes
from margrave.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One step as the statistics see it, without gradient.

    Attributes:
        unit_embeddings: (B, D) x̂.
        feature_norm: (B,) ‖x‖.
        target_cosine: (B,) cosθ_y.
        labels: (B,) the classes.
        sample_indices: (B,) the training images' numbers, where the loop gives them.
        momentum_embeddings: (B, D) the momentum encoder's embeddings, where the loop gives them.
    """

    unit_embeddings: Tensor
    feature_norm: Tensor
    target_cosine: Tensor
    labels: Tensor
    sample_indices: Tensor | None = None
    momentum_embeddings: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a statistic is built for.

    Attributes:
        num_classes: C.
        embedding_size: D.
        num_samples: training images, where a statistic keeps something for each.
        batch_world: the ranks that observe other samples; alone where all observe every sample.
        class_world: the ranks that own other classes; alone where each has all of them.
    """

    num_classes: int
    embedding_size: int
    num_samples: int | None = None
    batch_world: World = field(default_factory=World)
    class_world: World = field(default_factory=World)

    @property
    def classes(self) -> range:
        """The classes that this rank keeps statistics of."""
        return owned_classes(self.num_classes, self.class_world)


class Statistic(nn.Module):
    """Running state in buffers: equal on every rank, or kept by the rank that owns the class.

    A subclass is registered under the name that losses put in `needs`, takes `Surroundings` and its
    own settings, and implements `update` (training only, before use) and `context`.
    """

    per_step: bool = True
    """Whether `update` counts optimiser steps; otherwise it gathers every sample."""

    reads: frozenset[str] = frozenset()
    """The optional fields of `Observation` that this statistic cannot do without."""

    def __init__(self, surroundings: Surroundings) -> None:
        super().__init__()
        self.surroundings = surroundings

    def update(self, observation: Observation) -> None:
        """Take a training step into account."""
        raise NotImplementedError

    def context(self, observation: Observation) -> dict[str, Tensor]:
        """The fields of `margrave.losses.Context` that this statistic provides."""
        raise NotImplementedError

    def split_buffers(self) -> dict[str, int]:
        """Buffers with a row per class or image that its owner keeps, and all ranks' rows."""
        return {}

    def end_epoch(self) -> None:
        """Called by the loop when every training sample has passed once."""


STATISTICS: Registry[type[Statistic]] = Registry("statistic")
