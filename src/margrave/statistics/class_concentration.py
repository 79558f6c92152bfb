"""How tightly each class's features lie together, and how many there are: KappaFace's ψ."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from margrave.distributed import World, all_reduce_max, all_reduce_sum, owned_classes
from margrave.statistics.contract import STATISTICS, Observation, Statistic, Surroundings

ALONE = World()
LARGEST_MEAN_LENGTH = 1 - 1e-4
"""r̄ is kept below this: identical features would have an infinite concentration."""


@STATISTICS.register("class_concentration")
class ClassConcentration(Statistic):
    """ψ_c = γ·w_κ + (1 − γ)·w_s, recomputed at the end of each epoch and 1 during the first.

    Over the epoch's unit features f of class c, counted as they came (samplers drop and repeat):
    r̄ = ‖Σ f‖ / n_c; κ_c = r̄(D − r̄²)/(1 − r̄²);
    w_κ = 1 − sigmoid( temperature·(κ_c − mean κ)/std κ ), std unbiased;
    w_s = ½[cos(π·n_c/(1.05·max n)) + 1].

    A class seen once has no concentration: it takes the neutral w_κ = ½ and stays out of the mean.
    So do all classes while the κ are equal or fewer than two. A class not seen keeps its ψ.

    Source: KappaFace, arXiv 2201.07394, equations 7 to 14. Written from the paper alone.

    Args:
        surroundings: sizes and ranks; `num_samples` is needed by the memory buffer.
        temperature: of w_κ, above 0.
        concentration_share: γ in [0, 1].
        estimator: which features count, see `margrave.losses.kappaface.KappaFace`.
        memory_update_weight: the memory becomes normalise((1 − weight)·memory + weight·f).
    """

    per_step = False

    margin_weight: Tensor
    concentration: Tensor
    feature_sum: Tensor
    count: Tensor
    memory: Tensor
    memory_label: Tensor

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        temperature: float,
        concentration_share: float,
        estimator: Literal["momentum_encoder", "memory_buffer", "online"],
        memory_update_weight: float,
    ) -> None:
        super().__init__(surroundings)
        self.temperature = temperature
        self.concentration_share = concentration_share
        self.estimator = estimator
        self.memory_update_weight = memory_update_weight
        self.own_classes = surroundings.classes
        classes, features = len(self.own_classes), surroundings.embedding_size
        self.register_buffer("margin_weight", torch.ones(classes))
        self.register_buffer("concentration", torch.zeros(classes))
        needed = {"momentum_encoder": "momentum_embeddings", "memory_buffer": "sample_indices"}
        self.reads = frozenset({needed[estimator]} if estimator in needed else ())
        if estimator == "memory_buffer":
            if not surroundings.num_samples:
                raise ValueError(
                    "the memory buffer keeps a vector per training image: "
                    "give the head num_samples, or choose estimator 'online'"
                )
            if surroundings.batch_world.size > 1:
                raise ValueError(
                    "the memory buffer would keep an image on every rank that ever met it: with "
                    f"{surroundings.batch_world.size} ranks and a head that is not sharded choose "
                    "head 'sharded' or estimator 'online'"
                )
            self.own_samples = owned_classes(surroundings.num_samples, surroundings.class_world)
            samples = len(self.own_samples)
            self.register_buffer("memory", torch.zeros(samples, features))
            self.register_buffer("memory_label", torch.full((samples,), -1))
        else:
            self.register_buffer("feature_sum", torch.zeros(classes, features))
            self.register_buffer("count", torch.zeros(classes, dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        if self.estimator == "memory_buffer":
            self._remember(observation)
            return
        features = observation.unit_embeddings
        if self.estimator == "momentum_encoder":
            if observation.momentum_embeddings is None:
                raise ValueError(
                    "estimator 'momentum_encoder' needs momentum_embeddings in every training call "
                    "of the head: pass MomentumEncoder's, or choose estimator 'online'"
                )
            features = functional.normalize(observation.momentum_embeddings)
        position, counts = _inside(observation.labels, self.own_classes)
        counts &= torch.isfinite(features).all(dim=1)
        features = torch.where(counts[:, None], features, 0)
        if self.own_classes:
            self.feature_sum.index_add_(0, position, features.to(self.feature_sum))
            self.count.index_add_(0, position, counts.long())

    def _remember(self, observation: Observation) -> None:
        if observation.sample_indices is None:
            raise ValueError(
                "estimator 'memory_buffer' needs sample_indices in every training call of the "
                "head: the number of each image in the training set; or choose 'online'"
            )
        if not self.own_samples:
            return
        position, inside = _inside(observation.sample_indices, self.own_samples)
        features = observation.unit_embeddings.to(self.memory)
        # Others' images are replaced by the last of this rank's own, which is then written again:
        # leaving them out would give a shape that depends on values, for which the host waits.
        numbers = torch.arange(len(inside), device=inside.device)
        own = torch.where(inside, numbers, ((numbers + 1) * inside).argmax())
        position, inside, features = position[own], inside[own], features[own]
        old = self.memory[position]
        blended = functional.normalize(torch.lerp(old, features, self.memory_update_weight))
        known = inside & torch.isfinite(features).all(dim=1)
        self.memory.index_copy_(0, position, torch.where(known[:, None], blended, old))
        labels = torch.where(inside, observation.labels[own], self.memory_label[position])
        self.memory_label.index_copy_(0, position, labels)

    def split_buffers(self) -> dict[str, int]:
        by_class = {"margin_weight", "concentration", "feature_sum", "count"}
        by_image = {"memory", "memory_label"}
        found = dict.fromkeys(by_class & set(self._buffers), self.surroundings.num_classes)
        images = self.surroundings.num_samples or 0
        return found | dict.fromkeys(by_image & set(self._buffers), images)

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Σ f and n of this rank's classes, over every rank's samples."""
        world = self.surroundings.batch_world
        if self.estimator != "memory_buffer":
            return all_reduce_sum(self.feature_sum, world), all_reduce_sum(self.count, world)
        world, own = self.surroundings.class_world, None
        # Each rank remembers some images of every rank's classes.
        for rank in range(world.size):
            classes = owned_classes(self.surroundings.num_classes, World(rank, world.size))
            # Images not seen yet, and other ranks' classes, gather in one more, which is cut off.
            position, inside = _inside(self.memory_label, classes)
            position = torch.where(inside, position, len(classes))
            total = self.memory.new_zeros(len(classes) + 1, self.memory.shape[1])
            total.index_add_(0, position, self.memory)
            count = position.new_zeros(len(classes) + 1)
            count.index_add_(0, position, torch.ones_like(position))
            sums = all_reduce_sum(total[:-1], world), all_reduce_sum(count[:-1], world)
            own = sums if rank == world.rank else own
        assert own is not None
        return own

    @torch.no_grad()
    def end_epoch(self) -> None:
        feature_sum, count = self._sums()
        world = self.surroundings.class_world
        concentration = concentration_of(feature_sum, count)
        share = self.concentration_share
        weight = share * concentration_weight(concentration, count > 1, self.temperature, world)
        weight = weight + (1 - share) * size_weight(count.to(concentration), world)
        self.concentration.copy_(torch.where(count > 0, concentration, self.concentration))
        self.margin_weight.copy_(torch.where(count > 0, weight, self.margin_weight))
        if self.estimator != "memory_buffer":
            self.feature_sum.zero_()
            self.count.zero_()

    def context(self, observation: Observation) -> dict[str, Tensor]:
        position, inside = _inside(observation.labels, self.own_classes)
        weight = torch.zeros_like(observation.target_cosine)
        if self.own_classes:
            weight = torch.where(inside, self.margin_weight[position].to(weight), weight)
        return {"margin_weight": all_reduce_sum(weight, self.surroundings.class_world)}


def _inside(numbers: Tensor, own: range) -> tuple[Tensor, Tensor]:
    """Positions within a range, 0 for numbers outside of it, and which lie inside."""
    inside = (numbers >= own.start) & (numbers < own.stop)
    return torch.where(inside, numbers - own.start, 0), inside


def concentration_of(feature_sum: Tensor, count: Tensor) -> Tensor:
    """κ (C,) from Σ f (C, D) and n (C,): r̄(D − r̄²)/(1 − r̄²), r̄ = ‖Σ f‖/n.

    >>> concentration_of(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([2, 2])).round()
    tensor([2.0000e+00, 5.0000e+03])
    """
    features = feature_sum.shape[1]
    length = feature_sum.norm(dim=1) / count.clamp_min(1)
    # Low precision rounds that to 1, which would divide by 0.
    below_one = 1 - torch.finfo(length.dtype).eps / 2
    length = length.clamp_max(min(LARGEST_MEAN_LENGTH, below_one))
    return length * (features - length.square()) / (1 - length.square())


def concentration_weight(
    concentration: Tensor, known: Tensor, temperature: float, world: World = ALONE
) -> Tensor:
    """w_κ: large for scattered classes; ½ where the concentration is not known.

    The world's ranks have the other classes.
    """
    count = all_reduce_sum(known.sum(), world)
    mean = all_reduce_sum(torch.where(known, concentration, 0).sum(), world) / count.clamp_min(1)
    squares = torch.where(known, (concentration - mean).square(), 0).sum()
    squares = all_reduce_sum(squares, world)
    deviation = (squares / (count - 1).clamp_min(1)).sqrt()
    distinct = known & (deviation > torch.finfo(deviation.dtype).eps * mean.abs())
    standardised = torch.where(distinct, (concentration - mean) / deviation, 0)
    return 1 - torch.sigmoid(temperature * standardised)


def size_weight(count: Tensor, world: World = ALONE) -> Tensor:
    """w_s: near 1 for small classes, near 0 for the largest of all ranks.

    >>> size_weight(torch.tensor([0.0, 10.0])).round(decimals=3)
    tensor([1.0000, 0.0060])
    """
    largest = all_reduce_max(torch.cat([count, count.new_ones(1)]).max(), world)
    return (torch.cos(math.pi * count / (1.05 * largest)) + 1) / 2
