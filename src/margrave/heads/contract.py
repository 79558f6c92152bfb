"""The base class of heads: one module with class centers, a loss and its statistics.

Shapes: B samples of this rank, A samples of all ranks that the classes are sharded over (A = B
unless the head is sharded), D features, C classes, K classes that this rank uses in a step, M
centers per class. In a sharded head, tensors with a row per class have only the rows of this rank's
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from margrave.distributed import (
    World,
    all_reduce_log_sum_exp,
    all_reduce_sum,
    current_world,
    gather_rows,
    gather_sizes,
    owned_classes,
    rows_of_rank,
)
from margrave.heads.batch import Batch
from margrave.heads.centers import (
    center_rows,
    initial_centers,
    log_sum_exp_of_negatives,
    nearest_centers,
)
from margrave.heads.cost import HeadCost, Workload
from margrave.heads.embeddings import check_batch, unit_and_norm
from margrave.heads.products import Products
from margrave.heads.recomputation import Call, CallMemory
from margrave.heads.reducers import LogSumExp, Reducer, SigmoidSum
from margrave.losses import Context, Loss
from margrave.losses import create as create_loss
from margrave.registry import Registry
from margrave.statistics import Observation, Statistic, StatisticSpec, create_statistics

Reduction = Literal["mean", "none"]


class Head(nn.Module):
    """Class centers and a margin loss: ``head(embeddings (B, D), labels (B,)) -> loss``.

    Pass unnormalized embeddings, since some margins depend on their norm. Each training call
    updates the loss's running statistics before using them; evaluation leaves them unchanged. Call
    `end_epoch` after each epoch (only KappaFace needs it).

    Args:
        loss: a loss, its registered name, or ``{"kind": name, **hyperparameters}``.
        num_classes: C, the number of classes.
        embedding_size: D, the number of features.
        num_samples: number of training images; needed only by KappaFace's memory buffer.
        centers_per_class: M, the number of centers of each class. A sample's cosine to a class is
            its cosine to the nearest center of the class, so mislabeled images can gather at a
            separate center (Sub-center ArcFace, where M = 3).

    Raises:
        ValueError: a size is not positive, the loss is unknown, or a loss of inner products
            (``softmax``) gets several centers per class; in `forward`, the batch does not fit the
            head.
    """

    learning_rate: float = 0.0
    """Learning rate of the center update in the backward pass, see `update_in_backward`."""

    products: Products = "float32"
    """Precision of the matrix products of a float32 head; configurable in some heads."""

    sharded: ClassVar[bool] = False
    """True if each rank owns a shard of the classes, False if every rank has all of them."""

    weight: nn.Parameter
    """(C, D) the class centers, or (C, M, D) with M > 1 centers per class."""

    bias: Tensor | None
    """(C,) added to inner products; None for a loss of cosines."""

    sigmoid_bias: Tensor | None
    """(1,) the learned bias b of a loss with sigmoids, see `SigmoidTerms`; None for a softmax."""

    target_cosines: Tensor
    """(B,) cosθ_y of the latest batch, without gradient; W_yᵀx + b_y for a loss of inner products.

    It is not part of the state dict.
    """

    def __init__(
        self,
        loss: Loss | str | Mapping[str, Any],
        num_classes: int,
        embedding_size: int = 512,
        *,
        num_samples: int | None = None,
        centers_per_class: int = 1,
    ) -> None:
        super().__init__()
        if num_classes < 1 or embedding_size < 1:
            raise ValueError(
                f"num_classes = {num_classes} and embedding_size = {embedding_size} "
                "must be at least 1"
            )
        if not isinstance(loss, Loss):
            loss = create_loss({"kind": loss} if isinstance(loss, str) else loss)
        if centers_per_class < 1 or (centers_per_class > 1 and not loss.normalized):
            raise ValueError(
                f"centers_per_class = {centers_per_class} must be at least 1, and exactly 1 for "
                "a loss of inner products"
            )
        self.loss = loss
        self.num_classes = num_classes
        self.centers_per_class = centers_per_class
        self.embedding_size = embedding_size
        self.world = current_world() if self.sharded else World()
        self.classes = owned_classes(num_classes, self.world)
        self._call_memory = CallMemory()
        self._call = Call()
        self.target_cosines = torch.empty(0)
        # The rows of this rank's centers among the centers of all ranks.
        rows = range(centers_per_class * self.classes.start, centers_per_class * self.classes.stop)
        center_shape = (centers_per_class,) if centers_per_class > 1 else ()
        centers = initial_centers(rows, embedding_size)
        self.weight = nn.Parameter(centers.view(len(self.classes), *center_shape, embedding_size))
        self.bias = None if loss.normalized else nn.Parameter(torch.zeros(len(self.classes)))
        self.sigmoid_terms = loss.sigmoid_terms(num_classes)
        self.sigmoid_bias = None
        if self.sigmoid_terms is not None:
            initial_bias = torch.tensor([self.sigmoid_terms.initial_bias])
            self.sigmoid_bias = nn.Parameter(initial_bias)
        # The statistics of a sharded head observe the samples of all ranks, so they need no
        # reduction over ranks.
        self._batch_world = World() if self.sharded else current_world()
        spec = StatisticSpec(
            num_classes=num_classes,
            embedding_size=embedding_size,
            num_samples=num_samples,
            batch_world=self._batch_world,
            class_world=self.world,
        )
        self.statistics = nn.ModuleDict(create_statistics(loss.needs, spec))

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
        """Compute the loss of a batch.

        Args:
            embeddings: (B, D), unnormalized, of any floating-point dtype.
            labels: (B,) integers in [0, C).
            sample_indices: (B,) each image's index in the training set, in [0, num_samples); used
                only by KappaFace's memory buffer.
            momentum_embeddings: (B, D) output of a momentum encoder; used only by KappaFace.
            new_step: True for the first micro-batch of an optimizer step, False for the others, so
                that statistics that count steps are updated once per step.
            reduction: ``mean`` returns a scalar, ``none`` the (B,) losses of the samples.
        """
        # Inside a compiled module, the head itself runs uncompiled.
        run = _uncompiled_compute_loss() if torch.compiler.is_compiling() else Head._compute_loss
        return run(
            self, embeddings, labels, sample_indices, momentum_embeddings, new_step, reduction
        )

    def _compute_loss(
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
            # DDP averages gradients over ranks. With this factor, the average is the gradient of
            # the mean loss over the samples of all ranks.
            return loss.sum() * (self.world.size / sum(batch.sizes))

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The terms whose sum is the loss: name -> (B,) values."""
        cross_entropy = self.cross_entropy(batch)

        def gather_cross_entropy() -> Tensor:
            if self.sharded:
                return gather_rows(cross_entropy.detach(), batch.sizes, self.world)
            # Evaluation does not gather, because ranks may call their replicas at different times.
            world = self._batch_world if self.training else World()
            sizes = gather_sizes(len(cross_entropy), world, cross_entropy.device)
            return gather_rows(cross_entropy.detach(), sizes, world)

        modified = self.loss.modify_cross_entropy(cross_entropy, gather_cross_entropy)
        terms = {"cross entropy": modified}
        penalty = self.loss.penalty(batch.context)
        return terms if penalty is None else terms | {"penalty": penalty}

    def cross_entropy(self, batch: Batch) -> Tensor:
        """(B,) cross entropy of the modified cosines, or the sum of one sigmoid loss per class.

        Implemented by subclasses.
        """
        raise NotImplementedError

    def reducer(self) -> Reducer:
        """A reducer for the negatives of one step, with the current `sigmoid_bias`."""
        if self.sigmoid_terms is None or self.sigmoid_bias is None:
            return LogSumExp(self.loss)
        bias = self.sigmoid_bias.detach().clone()
        return SigmoidSum(self.sigmoid_terms, self.loss.scale, bias)

    def prepare(
        self,
        embeddings: Tensor,
        labels: Tensor,
        sample_indices: Tensor | None = None,
        momentum_embeddings: Tensor | None = None,
        *,
        new_step: bool = True,
    ) -> Batch:
        """Validate and normalize a batch, compute its target cosines, and update the statistics.

        Args:
            *: see `forward`.

        Returns:
            The batch that `terms` and `cross_entropy` take.
        """
        check_batch(embeddings, labels, self.num_classes, self.embedding_size)
        # With activation checkpointing, the backward pass repeats the call of the forward pass.
        original_call = self._call_memory.find_original(labels) if self.training else None
        self._call = original_call or Call()
        if self.training and original_call is None:
            self._call_memory.remember(labels, self._call)
        labels = labels.long()
        unit, norm = unit_and_norm(embeddings.to(self.weight.dtype))
        sizes = gather_sizes(len(labels), self.world, labels.device)
        rank_rows = rows_of_rank(sizes, self.world)

        def gather(values: Tensor | None) -> Tensor | None:
            return None if values is None else gather_rows(values, sizes, self.world)

        with torch.no_grad():
            all_unit, all_labels = (gather_rows(rows, sizes, self.world) for rows in (unit, labels))
            gathered = Observation(
                unit_embeddings=all_unit,
                feature_norm=gather_rows(norm, sizes, self.world),
                labels=all_labels,
                target_cosine=norm,  # a placeholder, replaced below
                sample_indices=gather(sample_indices),
                momentum_embeddings=gather(momentum_embeddings),
                log_sum_exp_of_negatives=partial(
                    self._log_sum_exp_of_negatives, all_unit, all_labels
                ),
            )
            target = self.local_target_products(
                gathered.unit_embeddings, gathered.feature_norm, gathered.labels
            )
            gathered = replace(gathered, target_cosine=all_reduce_sum(target, self.world))
            if original_call is None:
                self._call.statistic_values = self._update_and_read_statistics(gathered, new_step)
        self.target_cosines = gathered.target_cosine[rank_rows]
        context = Context(feature_norm=gathered.feature_norm, **self._call.statistic_values)
        return Batch(
            unit=unit,
            norm=norm,
            labels=labels,
            target_cosine=gathered.target_cosine[rank_rows],
            context=context.select_samples(rank_rows) | {"feature_norm": norm},  # with gradient
            gathered=gathered,
            gathered_context=context,
            sizes=sizes,
            rank_rows=rank_rows,
        )

    def _update_and_read_statistics(
        self, gathered: Observation, new_step: bool
    ) -> dict[str, Tensor]:
        """Update the statistics in training mode; return the values they supply to the loss."""
        supplied: dict[str, Tensor] = {}
        samples = len(gathered.labels)
        for statistic in self._statistics():
            statistic_name = type(statistic).__name__
            if self.training and (new_step or not statistic.per_step):
                statistic.update(gathered)
            values = statistic.context(gathered)
            for name, value in values.items():
                if name in supplied or name == "feature_norm":
                    raise ValueError(
                        f"{statistic_name} supplies {name!r}, which the context already contains; "
                        "choose another name"
                    )
                if value.ndim and len(value) != samples:
                    raise ValueError(
                        f"{statistic_name} supplies {name!r} of shape {tuple(value.shape)}; "
                        f"for {samples} samples the shape must be () or ({samples},)"
                    )
            supplied |= values
        return supplied

    def products_for(self, samples: int) -> Products:
        """The precision of the matrix products for a number of samples; resolves ``auto``."""
        del samples
        return self.products

    def update_in_backward(self, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        """From now on, apply SGD to the class centers in the backward pass, see `ChunkedHead`.

        Raises:
            ValueError: this head does not support it.
        """
        del momentum, weight_decay
        raise ValueError(
            f"{type(self).__name__} cannot update its class centers in the backward pass; choose "
            "head.kind chunked, or set optimizer.centers_in_backward to false"
        )

    def cost(self, workload: Workload) -> HeadCost:
        """Estimate the memory and work of a training step; the head may be on the meta device.

        This implementation is for a head that stores all cosines at once.
        """
        num_centers, num_features = self.centers.shape
        weight_bytes, value_bytes = self.weight.nbytes, self.weight.itemsize
        memory: dict[str, float] = {
            "class centers": weight_bytes,
            "momentum of centers": workload.moments * weight_bytes,
            "gradient of centers": weight_bytes,
            # The normalized weight and the gradient with respect to it.
            "normalized copies": 2 * weight_bytes,
            # About eight tensors: cosines, negatives, logits, masks and their gradients.
            "cosines": 8 * value_bytes * workload.samples * num_centers,
            # A rough count of the tensors that are as large as the embeddings.
            "batch": 6 * value_bytes * workload.samples * num_features,
        }
        return HeadCost(memory=memory | self.statistics_memory(), local_centers=num_centers)

    def statistics_memory(self) -> dict[str, float]:
        """The memory of statistics with a row per class or image, for `HeadCost.memory`.

        The dictionary is empty if the loss has no such statistics.
        """
        row_bytes = sum(buffer.nbytes for buffer in self.statistics.buffers() if buffer.ndim)
        return {"class statistics": row_bytes} if row_bytes else {}

    def local_target_products(self, unit: Tensor, norm: Tensor, labels: Tensor) -> Tensor:
        """(A,) cosθ_y, or W_yᵀx + b_y; 0 for samples whose class another rank owns."""
        if not self.classes:
            return torch.zeros_like(norm)
        position, is_owned = self.local_positions(labels)
        if self.bias is None:
            cosines = self.cosines_of_target(unit, position)
            products = nearest_centers(cosines, self.centers_per_class)[0][:, 0]
        else:
            centers = functional.embedding(position, self.weight)
            products = norm * (unit * centers).sum(dim=1) + self.bias[position]
        return torch.where(is_owned, products, 0)

    def cosines_of_target(self, unit: Tensor, position: Tensor) -> Tensor:
        """(A, M) each sample's cosines to the centers of its class.

        `position` (A,) is the row of that class in `weight`.
        """
        # Unlike indexing, `functional.embedding` sums gradients in a fixed, reproducible order.
        centers = functional.embedding(center_rows(position, self.centers_per_class), self.centers)
        unit_centers = unit_and_norm(centers)[0].unflatten(0, (-1, self.centers_per_class))
        return (unit[:, None] * unit_centers).sum(dim=2)

    def step_classes(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """The classes that this rank uses in the step, and the targets' positions among them.

        Returns:
            (K,) the rows of these classes in `weight`, or None if all rows are used; and (A,) the
            position of each target among these classes, −1 if it is not one of them.
        """
        position, is_owned = self.local_positions(labels)
        return None, torch.where(is_owned, position, -1)

    def _log_sum_exp_of_negatives(self, unit: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """Compute `Observation.log_sum_exp_of_negatives`."""
        rows, positions = self.step_classes(labels)
        if rows is None:
            rows = torch.arange(len(self.classes), device=unit.device)
        local_log_sum_exp = log_sum_exp_of_negatives(
            unit, self.centers.detach(), rows, positions, self.centers_per_class, scale
        )
        return all_reduce_log_sum_exp(local_log_sum_exp, self.world)

    def local_positions(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(A,) each label's row in this rank's weight; (A,) whether this rank owns the class.

        The row is 0 if another rank owns the class.
        """
        is_owned = (labels >= self.classes.start) & (labels < self.classes.stop)
        return torch.where(is_owned, labels - self.classes.start, 0), is_owned

    @property
    def centers(self) -> Tensor:
        """(C·M, D) this rank's class centers; the M centers of a class are adjacent rows."""
        return self.weight.flatten(0, -2)

    @property
    def reads(self) -> frozenset[str]:
        """The optional arguments of `forward` that this head's loss requires."""
        return frozenset().union(*(statistic.reads for statistic in self._statistics()))

    def sharded_entries(self) -> dict[str, int]:
        """Sharded entries of the state dict: name -> number of rows over all ranks."""
        state_dict = self.state_dict()
        statistic_rows = {f"statistics.{key}.{name}": rows
               for key, statistic in self.statistics.items() if isinstance(statistic, Statistic)
               for name, rows in statistic.sharded_buffers().items()}  # fmt: skip
        by_class = ("weight", "bias", "weight_momentum")
        return statistic_rows | {name: self.num_classes for name in by_class if name in state_dict}

    def scalars(self) -> dict[str, Tensor]:
        """The scalar statistics and `sigmoid_bias` by name, for logging."""
        values = {
            name: buffer for name, buffer in self.statistics.named_buffers() if buffer.ndim == 0
        }
        if self.sigmoid_bias is not None:
            values["sigmoid_bias"] = self.sigmoid_bias.detach().squeeze()
        return values

    def class_values(self) -> dict[str, Tensor]:
        """The floating-point statistics with one number per class: name -> this rank's values."""
        return {
            name: getattr(statistic, name)
            for statistic in self._statistics()
            for name in statistic.sharded_buffers()
            if getattr(statistic, name).shape == (len(self.classes),)
            and getattr(statistic, name).is_floating_point()
        }

    def end_epoch(self) -> None:
        """Update the statistics that adapt once per epoch."""
        for statistic in self._statistics():
            statistic.end_epoch()

    def _statistics(self) -> list[Statistic]:
        return [module for module in self.statistics.values() if isinstance(module, Statistic)]

    def extra_repr(self) -> str:
        text = f"{self.loss}, num_classes={self.num_classes}, embedding_size={self.embedding_size}"
        several = self.centers_per_class > 1
        return f"{text}, centers_per_class={self.centers_per_class}" if several else text


def _uncompiled_compute_loss() -> Any:
    # A decorator would import the compiler together with this module, which takes a second.
    return torch.compiler.disable(Head._compute_loss)


HEADS: Registry[type[Head]] = Registry("head")
