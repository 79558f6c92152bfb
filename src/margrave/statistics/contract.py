"""The base class of running statistics: what they observe, store and supply to losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from margrave.distributed import World, owned_classes
from margrave.registry import Registry


def _no_negatives(scale: Tensor) -> Tensor:
    raise ValueError(
        f"log_sum_exp_of_negatives was called with scale {float(scale)}, but this Observation was "
        "created without such a function; pass one, as heads do"
    )


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A training step's values that statistics observe, without gradient.

    B is the number of samples of all ranks that the classes are sharded over; D is the embedding
    size.

    Attributes:
        unit_embeddings: (B, D) x̂ = x/‖x‖ of the embeddings x.
        feature_norm: (B,) ‖x‖.
        target_cosine: (B,) cosθ_y.
        labels: (B,) class indices.
        sample_indices: (B,) indices of the images in the training set; None if the training loop
            does not pass them.
        momentum_embeddings: (B, D) the momentum encoder's embeddings; None if there are none.
        log_sum_exp_of_negatives: a function from a scale s () to (B,) log Σ_{j≠y} e^{s·cosθ_j}
            over the classes of all ranks. A call costs one more product of embeddings and class
            centers. Every rank that owns a shard of the classes must call the function.
    """

    unit_embeddings: Tensor
    feature_norm: Tensor
    target_cosine: Tensor
    labels: Tensor
    sample_indices: Tensor | None = None
    momentum_embeddings: Tensor | None = None
    log_sum_exp_of_negatives: Callable[[Tensor], Tensor] = _no_negatives


@dataclass(frozen=True, kw_only=True)
class StatisticSpec:
    """The sizes and ranks that a statistic is built for.

    Attributes:
        num_classes: C, over all ranks.
        embedding_size: D.
        num_samples: number of training images, for statistics that store something per image; None
            if unknown.
        batch_world: the ranks over which statistics of a batch are reduced; a single rank if every
            rank already observes the samples of all ranks.
        class_world: the ranks that the classes are sharded over; a single rank if every rank has
            all classes.
    """

    num_classes: int
    embedding_size: int
    num_samples: int | None = None
    batch_world: World = field(default_factory=World)
    class_world: World = field(default_factory=World)

    @property
    def classes(self) -> range:
        """The classes whose statistics this rank stores."""
        return owned_classes(self.num_classes, self.class_world)


class Statistic(nn.Module):
    """A running statistic in buffers that are equal on every rank, or sharded by class or image.

    A subclass takes a `StatisticSpec` and its settings, and implements `update` and `context`. In
    training, the head calls `update` before it computes the loss. A loss lists the statistics that
    it reads in `needs`, by registered name or import path, ``my_module:MyStatistic``. The buffers
    are part of the head's state dict.
    """

    per_step: bool = True
    """Whether `update` is called only for the first micro-batch of an optimizer step (True), or for
    every micro-batch."""

    reads: frozenset[str] = frozenset()
    """The optional fields of `Observation` that this statistic requires."""

    def __init__(self, spec: StatisticSpec) -> None:
        super().__init__()
        self.spec = spec

    def update(self, observation: Observation) -> None:
        """Update the statistic with the values of a training step."""
        raise NotImplementedError

    def context(self, observation: Observation) -> dict[str, Tensor]:
        """The fields of `margrave.losses.Context` that this statistic supplies, by name.

        Each field has shape () or (B,), has no gradient, and is equal on all ranks that the classes
        are sharded over. Return copies of buffers, because buffers may change in place before the
        backward pass.
        """
        raise NotImplementedError

    def sharded_buffers(self) -> dict[str, int]:
        """The buffers sharded by class or image: name -> number of rows over all ranks."""
        return {}

    def end_epoch(self) -> None:
        """Called by the training loop after each epoch."""


STATISTICS: Registry[type[Statistic]] = Registry("statistic")


def create_statistics(
    needs: Mapping[str, Mapping[str, Any]], spec: StatisticSpec
) -> dict[str, Statistic]:
    """Create the statistics that a loss needs.

    Args:
        needs: each statistic's registered name or import path -> its settings.
        spec: the sizes and ranks to build them for.

    Returns:
        The statistics by registered name, or by class name for import paths.

    Raises:
        ValueError: a name is unknown, a class is not a statistic, or two have the same name.

    >>> create_statistics({"iteration": {}}, StatisticSpec(num_classes=1, embedding_size=1))
    {'iteration': Iteration()}
    """
    statistics: dict[str, Statistic] = {}
    for name_or_path, settings in needs.items():
        statistic_class = STATISTICS.get(name_or_path)
        if not (isinstance(statistic_class, type) and issubclass(statistic_class, Statistic)):
            raise ValueError(
                f"{name_or_path!r} is not a subclass of margrave.statistics.Statistic; derive "
                "your class from Statistic"
            )
        # State dicts and metrics contain this name, so it must not depend on the module's path.
        name = name_or_path.rpartition(":")[2]
        if name in statistics:
            raise ValueError(f"two statistics are named {name!r}; rename the class of one of them")
        statistics[name] = statistic_class(spec, **settings)
    return statistics
