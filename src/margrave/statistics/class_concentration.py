"""How tightly each class's features lie together, and how many there are: KappaFace's ψ."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from margrave.distributed import all_reduce_sum
from margrave.statistics.contract import STATISTICS, Observation, Statistic, Surroundings

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
        classes, features = surroundings.num_classes, surroundings.embedding_size
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
            if surroundings.world.size > 1:
                raise ValueError(
                    "the memory buffer would keep an image on every rank that ever met it: with "
                    f"{surroundings.world.size} ranks choose estimator 'online'"
                )
            samples = surroundings.num_samples
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
        finite = torch.isfinite(features).all(dim=1)
        features = torch.where(finite[:, None], features, 0)
        self.feature_sum.index_add_(0, observation.labels, features.to(self.feature_sum))
        self.count.index_add_(0, observation.labels, finite.long())

    def _remember(self, observation: Observation) -> None:
        if observation.sample_indices is None:
            raise ValueError(
                "estimator 'memory_buffer' needs sample_indices in every training call of the "
                "head: the number of each image in the training set; or choose 'online'"
            )
        indices = observation.sample_indices
        features = observation.unit_embeddings.to(self.memory)
        old = self.memory[indices]
        blended = functional.normalize(torch.lerp(old, features, self.memory_update_weight))
        finite = torch.isfinite(features).all(dim=1)
        self.memory.index_copy_(0, indices, torch.where(finite[:, None], blended, old))
        self.memory_label.index_copy_(0, indices, observation.labels)

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Σ f (C, D) and n (C,) of this rank."""
        if self.estimator != "memory_buffer":
            return self.feature_sum, self.count
        classes, features = self.surroundings.num_classes, self.surroundings.embedding_size
        # Images not seen yet gather in one class more, which is cut off.
        label = torch.where(self.memory_label < 0, classes, self.memory_label)
        total = self.memory.new_zeros(classes + 1, features).index_add_(0, label, self.memory)
        return total[:-1], torch.bincount(label, minlength=classes + 1)[:-1]

    @torch.no_grad()
    def end_epoch(self) -> None:
        feature_sum, count = self._sums()
        world = self.surroundings.world
        feature_sum, count = all_reduce_sum(feature_sum, world), all_reduce_sum(count, world)
        concentration = concentration_of(feature_sum, count)
        share = self.concentration_share
        weight = share * concentration_weight(concentration, count > 1, self.temperature)
        weight = weight + (1 - share) * size_weight(count.to(concentration))
        self.concentration.copy_(torch.where(count > 0, concentration, self.concentration))
        self.margin_weight.copy_(torch.where(count > 0, weight, self.margin_weight))
        if self.estimator != "memory_buffer":
            self.feature_sum.zero_()
            self.count.zero_()

    def context(self, observation: Observation) -> dict[str, Tensor]:
        weight = self.margin_weight[observation.labels]
        return {"margin_weight": weight.to(observation.target_cosine)}


def concentration_of(feature_sum: Tensor, count: Tensor) -> Tensor:
    """κ (C,) from Σ f (C, D) and n (C,): r̄(D − r̄²)/(1 − r̄²), r̄ = ‖Σ f‖/n.

    >>> concentration_of(torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([2, 2])).round()
    tensor([2.0000e+00, 5.0000e+03])
    """
    features = feature_sum.shape[1]
    length = feature_sum.norm(dim=1) / count.clamp_min(1)
    length = length.clamp_max(LARGEST_MEAN_LENGTH)
    return length * (features - length.square()) / (1 - length.square())


def concentration_weight(concentration: Tensor, known: Tensor, temperature: float) -> Tensor:
    """w_κ (C,): large for scattered classes; ½ where the concentration is not known."""
    count = known.sum()
    mean = torch.where(known, concentration, 0).sum() / count.clamp_min(1)
    squares = torch.where(known, (concentration - mean).square(), 0).sum()
    deviation = (squares / (count - 1).clamp_min(1)).sqrt()
    distinct = known & (deviation > torch.finfo(deviation.dtype).eps * mean.abs())
    standardised = torch.where(distinct, (concentration - mean) / deviation, 0)
    return 1 - torch.sigmoid(temperature * standardised)


def size_weight(count: Tensor) -> Tensor:
    """w_s (C,): near 1 for small classes, near 0 for the largest.

    >>> size_weight(torch.tensor([0.0, 10.0])).round(decimals=3)
    tensor([1.0000, 0.0060])
    """
    return (torch.cos(math.pi * count / (1.05 * count.max().clamp_min(1))) + 1) / 2
