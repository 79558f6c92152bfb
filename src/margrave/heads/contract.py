"""What every head is: class centres, the loss's statistics, and one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from margrave.distributed import current_world
from margrave.heads.embeddings import check_batch, unit_and_norm
from margrave.losses import Context, Loss
from margrave.losses import create as create_loss
from margrave.registry import Registry
from margrave.statistics import STATISTICS, Observation, Statistic, Surroundings

Reduction = Literal["mean", "none"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A checked batch on its way through a head, in the head's dtype.

    Attributes:
        unit: (B, D) x̂.
        norm: (B,) ‖x‖.
        labels: (B,).
        target: (B,) cosθ_y, or W_yᵀx + b_y for a loss of inner products.
        context: what the loss reads.
    """

    unit: Tensor
    norm: Tensor
    labels: Tensor
    target: Tensor
    context: Context


class Head(nn.Module):
    """Class centres and a margin loss: ``head(embeddings (B, D), labels (B,)) -> loss``.

    Embeddings arrive unnormalised: some margins read their norm. Each training call updates the
    loss's running statistics before using them; in evaluation mode they rest. Call `end_epoch` when
    every sample has passed once (KappaFace adapts there; for the others it does nothing).

    Args:
        loss: a loss, its registered name, or ``{"kind": name, **hyperparameters}``.
        num_classes: C.
        embedding_size: D.
        num_samples: number of training images; only KappaFace's memory buffer asks for it.

    Raises:
        ValueError: sizes that are not positive, an unknown loss, a batch that does not fit.
    """

    bias: Tensor | None

    def __init__(
        self,
        loss: Loss | str | Mapping[str, Any],
        num_classes: int,
        embedding_size: int = 512,
        *,
        num_samples: int | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or embedding_size < 1:
            raise ValueError(
                f"num_classes = {num_classes} and embedding_size = {embedding_size} "
                "must be at least 1"
            )
        if not isinstance(loss, Loss):
            loss = create_loss({"kind": loss} if isinstance(loss, str) else loss)
        self.loss = loss
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.normal_(self.weight, std=0.01)
        self.bias = None if loss.normalized else nn.Parameter(torch.zeros(num_classes))
        surroundings = Surroundings(
            num_classes=num_classes,
            embedding_size=embedding_size,
            num_samples=num_samples,
            world=current_world(),
        )
        self.statistics = nn.ModuleDict(
            {
                name: STATISTICS.get(name)(surroundings, **settings)
                for name, settings in loss.needs.items()
            }
        )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        sample_indices: Tensor | None = None,
        momentum_embeddings: Tensor | None = None,
        new_step: bool = True,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The loss of a batch.

        Args:
            embeddings: (B, D), unnormalised, any floating dtype.
            labels: (B,) integers in [0, C).
            sample_indices: (B,) the images' numbers; only KappaFace's memory buffer reads them.
            momentum_embeddings: (B, D); only KappaFace's momentum encoder reads them.
            new_step: False for all but the first micro-batch of an optimiser step, so that
                statistics which count steps move once a step.
            reduction: ``mean`` for a scalar, ``none`` for (B,).
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction = {reduction!r}; choices: mean, none")
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self.prepare(
                embeddings, labels, sample_indices, momentum_embeddings, new_step=new_step
            )
            loss = sum(self.terms(batch).values(), torch.zeros_like(batch.norm))
            return loss.mean() if reduction == "mean" else loss

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """(B,) each: what the loss is the sum of."""
        terms = {"cross entropy": self.cross_entropy(batch)}
        penalty = self.loss.penalty(batch.context)
        return terms if penalty is None else terms | {"penalty": penalty}

    def cross_entropy(self, batch: Batch) -> Tensor:
        """(B,) −log softmax of the modified cosines: what sorts of heads differ in."""
        raise NotImplementedError

    def prepare(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_indices: Tensor | None = None,
        momentum_embeddings: Tensor | None = None,
        *,
        new_step: bool = True,
    ) -> Batch:
        """Check and normalise a batch, find its target cosines, and update the statistics."""
        check_batch(embeddings, labels, self.num_classes, self.embedding_size)
        labels = labels.long()
        unit, norm = unit_and_norm(embeddings.to(self.weight.dtype))
        target = self.target_products(unit, norm, labels)
        observation = Observation(
            unit_embeddings=unit.detach(),
            feature_norm=norm.detach(),
            target_cosine=target.detach(),
            labels=labels,
            sample_indices=sample_indices,
            momentum_embeddings=momentum_embeddings,
        )
        provided: dict[str, Tensor] = {"feature_norm": norm}
        with torch.no_grad():
            for statistic in self._statistics():
                if self.training and (new_step or not statistic.per_step):
                    statistic.update(observation)
                provided |= statistic.context(observation)
        return Batch(
            unit=unit, norm=norm, labels=labels, target=target, context=Context(**provided)
        )

    def target_products(self, unit: Tensor, norm: Tensor, labels: Tensor) -> Tensor:
        """(B,) cosθ_y, or W_yᵀx + b_y: B rows of the weight, whatever C is."""
        # Unlike indexing, an embedding's gradient is summed in one order: runs stay reproducible.
        centres = functional.embedding(labels, self.weight)
        if self.bias is None:
            return (unit * unit_and_norm(centres)[0]).sum(dim=1)
        return norm * (unit * centres).sum(dim=1) + self.bias[labels]

    @property
    def reads(self) -> frozenset[str]:
        """The optional arguments of `forward` that this head's loss cannot do without."""
        return frozenset().union(*(statistic.reads for statistic in self._statistics()))

    def scalars(self) -> dict[str, Tensor]:
        """The statistics that are single numbers, by name, for a training's curve."""
        return {
            name: buffer for name, buffer in self.statistics.named_buffers() if buffer.ndim == 0
        }

    def end_epoch(self) -> None:
        """Let the statistics that adapt once per epoch do so."""
        for statistic in self._statistics():
            statistic.end_epoch()

    def _statistics(self) -> list[Statistic]:
        return [module for module in self.statistics.values() if isinstance(module, Statistic)]

    def extra_repr(self) -> str:
        return f"{self.loss}, num_classes={self.num_classes}, embedding_size={self.embedding_size}"


HEADS: Registry[type[Head]] = Registry("head")
