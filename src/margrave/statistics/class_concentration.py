"""KappaFace's ψ: a margin weight per class, from how concentrated and how many its features are."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from margrave.distributed import World, all_reduce_max, all_reduce_sum, owned_classes
from margrave.statistics.contract import STATISTICS, Observation, Statistic, StatisticSpec

SINGLE_RANK = World()
MAX_MEAN_LENGTH = 1 - 1e-4
"""Upper limit of r̄, the length of a class's mean feature: identical features would have an infinite
concentration."""


@STATISTICS.register("class_concentration")
class ClassConcentration(Statistic):
    """ψ_c = γ·w_κ + (1 − γ)·w_s; it is 1 in the first epoch and updated after each epoch.

    f are the unit features of class c in the epoch, of size D, and n_c is their number (samplers
    may drop or repeat images of the class); with the memory buffer, f are the stored features. With
    mean, std and max over the classes:
    r̄ = ‖Σ f‖ / n_c; κ_c = r̄(D − r̄²)/(1 − r̄²);
    w_κ = 1 − sigmoid( temperature·(κ_c − mean κ)/std κ ), std unbiased;
    w_s = ½[cos(π·n_c/(1.05·max n)) + 1].

    A class with a single sample has no concentration: it gets the neutral w_κ = ½ and is excluded
    from mean κ and std κ. If all κ are equal, or there are fewer than two, every w_κ is ½. A class
    without samples keeps its ψ.

    Args:
        spec: sizes and ranks; the memory buffer requires `num_samples`.
        temperature: the sigmoid's temperature in w_κ, above 0.
        concentration_share: γ in [0, 1].
        estimator: where the features come from, see `margrave.losses.kappaface.KappaFace`.
        memory_update_weight: the weight in memory ← normalize((1 − weight)·memory + weight·f).

    Raises:
        ValueError: the memory buffer is chosen without `num_samples`, or for a head that is
            replicated on several ranks; in `update`, the observation lacks what the estimator
            requires.

    Source: KappaFace, arXiv 2201.07394, equations 7 to 14; implemented from the paper only.
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
        spec: StatisticSpec,
        *,
        temperature: float,
        concentration_share: float,
        estimator: Literal["momentum_encoder", "memory_buffer", "online"],
        memory_update_weight: float,
    ) -> None:
        super().__init__(spec)
        self.temperature = temperature
        self.concentration_share = concentration_share
        self.estimator = estimator
        self.memory_update_weight = memory_update_weight
        self._local_classes = spec.classes
        num_owned_classes, embedding_size = len(self._local_classes), spec.embedding_size
        self.register_buffer("margin_weight", torch.ones(num_owned_classes))
        self.register_buffer("concentration", torch.zeros(num_owned_classes))
        required = {"momentum_encoder": "momentum_embeddings", "memory_buffer": "sample_indices"}
        self.reads = frozenset({required[estimator]} if estimator in required else ())
        if estimator == "memory_buffer":
            if not spec.num_samples:
                raise ValueError(
                    "estimator 'memory_buffer' stores a vector per training image: "
                    "give the head num_samples, or choose estimator 'online'"
                )
            if spec.batch_world.size > 1:
                raise ValueError(
                    "estimator 'memory_buffer' does not work with a replicated head on "
                    f"{spec.batch_world.size} ranks, because each rank sees only its own images; "
                    "choose head 'sharded' or estimator 'online'"
                )
            # Images are sharded over ranks in the same way as classes.
            self._local_samples = owned_classes(spec.num_samples, spec.class_world)
            num_owned_samples = len(self._local_samples)
            self.register_buffer("memory", torch.zeros(num_owned_samples, embedding_size))
            # -1 marks an image that has not been seen yet.
            self.register_buffer("memory_label", torch.full((num_owned_samples,), -1))
        else:
            self.register_buffer("feature_sum", torch.zeros(num_owned_classes, embedding_size))
            self.register_buffer("count", torch.zeros(num_owned_classes, dtype=torch.int64))

    def update(self, observation: Observation) -> None:
        if self.estimator == "memory_buffer":
            self._update_memory(observation)
            return
        features = observation.unit_embeddings
        if self.estimator == "momentum_encoder":
            if observation.momentum_embeddings is None:
                raise ValueError(
                    "estimator 'momentum_encoder' requires momentum_embeddings in every training "
                    "call of the head: pass the MomentumEncoder's output, or choose 'online'"
                )
            features = functional.normalize(observation.momentum_embeddings)
        index, valid = _local_indices(observation.labels, self._local_classes)
        valid &= torch.isfinite(features).all(dim=1)
        features = torch.where(valid[:, None], features, 0)
        if self._local_classes:
            self.feature_sum.index_add_(0, index, features.to(self.feature_sum))
            self.count.index_add_(0, index, valid.long())

    def _update_memory(self, observation: Observation) -> None:
        if observation.sample_indices is None:
            raise ValueError(
                "estimator 'memory_buffer' requires sample_indices in every training call of the "
                "head: pass each image's index in the training set, or choose 'online'"
            )
        if not self._local_samples:
            return
        index, inside = _local_indices(observation.sample_indices, self._local_samples)
        features = observation.unit_embeddings.to(self.memory)
        # Filtering out the images of other ranks would give a shape that depends on values, so the
        # host would wait for the device. Instead, each of them is replaced by the last image of the
        # batch that this rank stores; its row is then written several times, with the same values.
        rows = torch.arange(len(inside), device=inside.device)
        last_inside = ((rows + 1) * inside).argmax()
        index = index[torch.where(inside, rows, last_inside)]
        # If an image occurs several times in the batch, each occurrence gets the values of the last
        # one: otherwise it would be undefined which values are stored.
        local_image = torch.where(inside, index, -1)
        sorted_images, order = local_image.sort(stable=True)
        last_row = order[torch.searchsorted(sorted_images, index, right=True) - 1]
        inside, features = inside[last_row], features[last_row]
        labels = observation.labels[last_row]
        old = self.memory[index]
        blended = functional.normalize(torch.lerp(old, features, self.memory_update_weight))
        valid = inside & torch.isfinite(features).all(dim=1)
        self.memory.index_copy_(0, index, torch.where(valid[:, None], blended, old))
        labels = torch.where(valid, labels, self.memory_label[index])
        self.memory_label.index_copy_(0, index, labels)

    def sharded_buffers(self) -> dict[str, int]:
        by_class = {"margin_weight", "concentration", "feature_sum", "count"}
        by_image = {"memory", "memory_label"}
        class_rows = dict.fromkeys(by_class & set(self._buffers), self.spec.num_classes)
        num_images = self.spec.num_samples or 0
        return class_rows | dict.fromkeys(by_image & set(self._buffers), num_images)

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Σ f (K, D) and n (K,) of this rank's K classes, summed over the samples of all ranks."""
        world = self.spec.batch_world
        if self.estimator != "memory_buffer":
            return all_reduce_sum(self.feature_sum, world), all_reduce_sum(self.count, world)
        world, own_sums = self.spec.class_world, None
        # A rank's memory has images of all classes, so the sums of each rank's classes are reduced
        # over all ranks.
        for rank in range(world.size):
            classes = owned_classes(self.spec.num_classes, World(rank, world.size))
            # Images not seen yet and images of other classes go to one extra row, which is dropped.
            index, inside = _local_indices(self.memory_label, classes)
            index = torch.where(inside, index, len(classes))
            total = self.memory.new_zeros(len(classes) + 1, self.memory.shape[1])
            total.index_add_(0, index, self.memory)
            count = index.new_zeros(len(classes) + 1)
            count.index_add_(0, index, torch.ones_like(index))
            sums = all_reduce_sum(total[:-1], world), all_reduce_sum(count[:-1], world)
            own_sums = sums if rank == world.rank else own_sums
        assert own_sums is not None
        return own_sums

    @torch.no_grad()
    def end_epoch(self) -> None:
        feature_sum, count = self._sums()
        world = self.spec.class_world
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
        index, inside = _local_indices(observation.labels, self._local_classes)
        weight = torch.zeros_like(observation.target_cosine)
        if self._local_classes:
            weight = torch.where(inside, self.margin_weight[index].to(weight), weight)
        return {"margin_weight": all_reduce_sum(weight, self.spec.class_world)}


def _local_indices(indices: Tensor, local: range) -> tuple[Tensor, Tensor]:
    """Indices relative to the range's start, 0 outside the range; a mask of those inside."""
    inside = (indices >= local.start) & (indices < local.stop)
    return torch.where(inside, indices - local.start, 0), inside


def concentration_of(feature_sum: Tensor, count: Tensor) -> Tensor:
    """κ (K,) = r̄(D − r̄²)/(1 − r̄²) with r̄ = ‖Σ f‖/n, from Σ f (K, D) and n (K,) of K classes.

    >>> concentration_of(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([2, 2])).round()
    tensor([2.0000e+00, 5.0000e+03])
    """
    embedding_size = feature_sum.shape[1]
    mean_length = feature_sum.norm(dim=1) / count.clamp_min(1)
    # In low precision MAX_MEAN_LENGTH rounds to 1, which would divide by 0.
    below_one = 1 - torch.finfo(mean_length.dtype).eps / 2
    mean_length = mean_length.clamp_max(min(MAX_MEAN_LENGTH, below_one))
    square = mean_length.square()
    return mean_length * (embedding_size - square) / (1 - square)


def concentration_weight(
    concentration: Tensor, is_defined: Tensor, temperature: float, world: World = SINGLE_RANK
) -> Tensor:
    """w_κ (K,): near 1 for scattered classes; ½ where the concentration is not defined.

    Args:
        concentration: κ (K,) of this rank's K classes.
        is_defined: (K,) bool, whether κ is defined, which takes at least two samples.
        temperature: the sigmoid's temperature.
        world: the ranks that the classes are sharded over.
    """
    count = all_reduce_sum(is_defined.sum(), world)
    total = all_reduce_sum(torch.where(is_defined, concentration, 0).sum(), world)
    mean = total / count.clamp_min(1)
    squares = torch.where(is_defined, (concentration - mean).square(), 0).sum()
    squares = all_reduce_sum(squares, world)
    std = (squares / (count - 1).clamp_min(1)).sqrt()
    # If all κ are equal up to rounding, they cannot be standardized.
    is_varied = is_defined & (std > torch.finfo(std.dtype).eps * mean.abs())
    standardized = torch.where(is_varied, (concentration - mean) / std, 0)
    return 1 - torch.sigmoid(temperature * standardized)


def size_weight(count: Tensor, world: World = SINGLE_RANK) -> Tensor:
    """w_s (K,): near 1 for classes with few samples, near 0 for the largest class of all ranks.

    >>> size_weight(torch.tensor([0.0, 10.0])).round(decimals=3)
    tensor([1.0000, 0.0060])
    """
    # The 1 avoids a division by 0, and an empty maximum on a rank that owns no classes.
    largest = all_reduce_max(torch.cat([count, count.new_ones(1)]).max(), world)
    return (torch.cos(math.pi * count / (1.05 * largest)) + 1) / 2
