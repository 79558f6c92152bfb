"""What every head is: class centres, the loss's statistics, and one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from margrave.distributed import (
    World,
    all_reduce_sum,
    current_world,
    gather_rows,
    own_rows,
    owned_classes,
    sizes_of_ranks,
)
from margrave.heads.embeddings import check_batch, unit_and_norm
from margrave.heads.recomputation import Call, CallMemory
from margrave.losses import Context, Loss
from margrave.losses import create as create_loss
from margrave.registry import Registry
from margrave.statistics import STATISTICS, Observation, Statistic, Surroundings

SEED_BLOCK = 1024
"""Classes whose centres are drawn from one seed."""

Reduction = Literal["mean", "none"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A checked batch on its way through a head, in the head's dtype.

    B are this rank's samples, A those of all ranks that share the classes.

    Attributes:
        unit: (B, D) x̂.
        norm: (B,) ‖x‖.
        labels: (B,).
        target: (B,) cosθ_y, or W_yᵀx + b_y for a loss of inner products; without gradient.
        context: what the loss reads of the B samples.
        everyone: the A samples, without gradient.
        everyones_context: what the loss reads of them, without gradient.
        sizes: how many samples each rank has.
        own: which of the A are the B.
    """

    unit: Tensor
    norm: Tensor
    labels: Tensor
    target: Tensor
    context: Context
    everyone: Observation
    everyones_context: Context
    sizes: tuple[int, ...]
    own: slice


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

    learning_rate: float = 0.0
    """Of centres that a head updates by itself, see `ChunkedHead.update_in_backward`."""

    splits_classes: ClassVar[bool] = False
    """Whether each rank owns a part of the classes instead of having them all."""

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
        self.world = current_world() if self.splits_classes else World()
        self.classes = owned_classes(num_classes, self.world)
        self._calls = CallMemory()
        self._call = Call()
        self.weight = nn.Parameter(initial_centres(self.classes, embedding_size))
        self.bias = None if loss.normalized else nn.Parameter(torch.zeros(len(self.classes)))
        surroundings = Surroundings(
            num_classes=num_classes,
            embedding_size=embedding_size,
            num_samples=num_samples,
            batch_world=World() if self.splits_classes else current_world(),
            class_world=self.world,
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
        # What holds a head may be compiled; its statistics, blocks and draws are not.
        run = _uncompiled() if torch.compiler.is_compiling() else Head._loss_of
        return run(
            self, embeddings, labels, sample_indices, momentum_embeddings, new_step, reduction
        )

    def _loss_of(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_indices: Tensor | None,
        momentum_embeddings: Tensor | None,
        new_step: bool,
        reduction: Reduction,
    ) -> Tensor:
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction = {reduction!r}; choices: mean, none")
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self.prepare(
                embeddings, labels, sample_indices, momentum_embeddings, new_step=new_step
            )
            loss = sum(self.terms(batch).values(), torch.zeros_like(batch.norm))
            if reduction == "none":
                return loss
            if self.world.size == 1:
                return loss.mean()
            return loss.sum() * (self.world.size / sum(batch.sizes))

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
        first = self._calls.repeated(labels) if self.training else None
        self._call = first or Call()
        if self.training and first is None:
            self._calls.remember(labels, self._call)
        labels = labels.long()
        unit, norm = unit_and_norm(embeddings.to(self.weight.dtype))
        sizes = sizes_of_ranks(len(labels), self.world, labels.device)
        own = own_rows(sizes, self.world)

        def gathered(values: Tensor | None) -> Tensor | None:
            return None if values is None else gather_rows(values, sizes, self.world)

        with torch.no_grad():
            everyone = Observation(
                unit_embeddings=gather_rows(unit, sizes, self.world),
                feature_norm=gather_rows(norm, sizes, self.world),
                labels=gather_rows(labels, sizes, self.world),
                target_cosine=norm,
                sample_indices=gathered(sample_indices),
                momentum_embeddings=gathered(momentum_embeddings),
            )
            target = self.own_target_products(
                everyone.unit_embeddings, everyone.feature_norm, everyone.labels
            )
            everyone = replace(everyone, target_cosine=all_reduce_sum(target, self.world))
            if first is None:
                self._call.provided = self._read_statistics(everyone, new_step)
        context = Context(feature_norm=everyone.feature_norm, **self._call.provided)
        return Batch(
            unit=unit,
            norm=norm,
            labels=labels,
            target=everyone.target_cosine[own],
            context=replace(context.of_samples(own), feature_norm=norm),
            everyone=everyone,
            everyones_context=context,
            sizes=sizes,
            own=own,
        )

    def _read_statistics(self, everyone: Observation, new_step: bool) -> dict[str, Tensor]:
        """What the loss reads of the statistics, which move first in training."""
        provided: dict[str, Tensor] = {}
        for statistic in self._statistics():
            if self.training and (new_step or not statistic.per_step):
                statistic.update(everyone)
            provided |= statistic.context(everyone)
        return provided

    def own_target_products(self, unit: Tensor, norm: Tensor, labels: Tensor) -> Tensor:
        """(A,) cosθ_y, or W_yᵀx + b_y, where this rank owns the class, else 0."""
        if not self.classes:
            return torch.zeros_like(norm)
        # Unlike indexing, an embedding's gradient is summed in one order: runs stay reproducible.
        position, own = self.position_of(labels)
        centres = functional.embedding(position, self.weight)
        if self.bias is None:
            products = (unit * unit_and_norm(centres)[0]).sum(dim=1)
        else:
            products = norm * (unit * centres).sum(dim=1) + self.bias[position]
        return torch.where(own, products, 0)

    def position_of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The labels' rows of this rank's weight, and which it owns; row 0 for the others."""
        own = (labels >= self.classes.start) & (labels < self.classes.stop)
        return torch.where(own, labels - self.classes.start, 0), own

    @property
    def reads(self) -> frozenset[str]:
        """The optional arguments of `forward` that this head's loss cannot do without."""
        return frozenset().union(*(statistic.reads for statistic in self._statistics()))

    def split_entries(self) -> dict[str, int]:
        """Entries of the state dict that hold rows of this rank's own, and all ranks' rows."""
        state = self.state_dict()
        own = {f"statistics.{statistic}.{name}": rows
               for statistic, module in self.statistics.items() if isinstance(module, Statistic)
               for name, rows in module.split_buffers().items()}  # fmt: skip
        centres = ("weight", "bias", "weight_momentum")
        return own | {name: self.num_classes for name in centres if name in state}

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


def _uncompiled() -> Any:
    # As a decorator it would import the compiler, a second that most do not need.
    return torch.compiler.disable(Head._loss_of)


def initial_centres(classes: range, embedding_size: int) -> Tensor:
    """(len(classes), D) of N(0, 0.01²): some classes' centres, whoever else has the others.

    Equal seeds of torch's generator give a class the same centre under any division into ranks.
    """
    seed = int(torch.randint(2**31, (), device="cpu"))
    centres = torch.empty(len(classes), embedding_size)
    if centres.is_meta:
        return centres
    for block in range(classes.start // SEED_BLOCK, -(-classes.stop // SEED_BLOCK)):
        generator = torch.Generator().manual_seed(seed + block)
        shape = SEED_BLOCK, embedding_size
        drawn = torch.randn(shape, generator=generator, device="cpu").mul_(0.01)
        first = block * SEED_BLOCK
        start, stop = max(first, classes.start), min(first + SEED_BLOCK, classes.stop)
        centres[start - classes.start : stop - classes.start] = drawn[start - first : stop - first]
    return centres


HEADS: Registry[type[Head]] = Registry("head")
