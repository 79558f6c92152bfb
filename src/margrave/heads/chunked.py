"""The head for everyday: exact, and never batch × classes at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from margrave.heads.contract import HEADS, Batch, Head
from margrave.heads.cosine_cache import CosineCache
from margrave.heads.cross_entropy import NegativeLogSumExp, Step
from margrave.heads.dense import dense_cross_entropy
from margrave.heads.fused_block import FusedBlock, can_compile, fused_block
from margrave.heads.products import Products, choose_products
from margrave.heads.rowwise_sgd import refuse_other_optimizers, sgd_
from margrave.heads.sampling import sample_classes
from margrave.losses import Loss

MEGABYTE = 2**20
BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**25}
"""Cosines in a block: what a core's cache holds, and what keeps a GPU busy."""
FUSED_BLOCK_VALUES = {"cpu": 2**22, "cuda": 2**27}
"""The same where few passes are left, so that the cost of calls counts for more."""
SMALLEST_BLOCK, LARGEST_BLOCK = 256, {"cpu": 2**14, "cuda": 2**17}
COMPILED_FROM = 2**23
# Where log(1 + e^x) is taken for x; e^−50 is nothing beside 50 even in float64.
SOFTPLUS_THRESHOLD = 50.0


def block_size_for(samples: int, device: str, fused: bool) -> int:
    """How many classes make a good block; accelerators other than CUDA's count as CUDA's."""
    kind = "cpu" if device == "cpu" else "cuda"
    values = (FUSED_BLOCK_VALUES if fused else BLOCK_VALUES)[kind] // samples
    return min(max(values, SMALLEST_BLOCK), LARGEST_BLOCK[kind])


def worth_compiling(samples: int, classes: int, device: str) -> bool:
    """Whether there is enough to do for a compilation to pay, and a compiler."""
    return samples * classes >= COMPILED_FROM and can_compile(device)


@HEADS.register("chunked")
class ChunkedHead(Head):
    """The dense head's loss and gradient from blocks of classes, each small enough for the cache.

    loss = log(1 + e^{lse − s·T}), lse = log Σ_{j≠y} e^{s·N_j} over all blocks.

    Args:
        loss: as in `Head`, like the next three.
        num_classes: C.
        embedding_size: D.
        num_samples: number of training images.
        memory_budget: megabytes of cosines kept for the backward pass, which otherwise rebuilds
            them, a fourth matrix product; B · C · 4 bytes keep everything (half as much with
            bfloat16 products). The buffer stays with the head between steps.
        block_size: classes at a time; by default by batch size and device.
        compiled: fuse what is elementwise about a block with `torch.compile`, which takes a C++
            compiler and up to a minute at the first step; by default where there is enough to do
            (batch × classes from 8 million) and a compiler.
        products: precision of a float32 head's three matrix products: ``float32``; ``tf32``, on
            GPUs; ``bfloat16``; or ``auto``, bfloat16 where it is native (processors with AMX or
            AVX512-BF16, GPUs from Ampere on) and batch × classes is at least a million. The weight,
            its gradient and momentum, log-sum-exp, statistics and target cosines stay float32.
        sample_rate: train on the batch's classes and a random rest up to this share of the classes
            (Partial FC), in (0, 1]. The weight's gradient is then sparse: use
            `margrave.heads.RowwiseSGD`. None for all classes and a dense gradient.
        sample_seed: of the random rest; with the same seed a run draws the same classes.

    Raises:
        ValueError: as `Head`; a setting out of its range.

    Source: Partial FC, arXiv 2010.05222 and 2203.15565, for the sampling.

    >>> head = ChunkedHead("adaface", num_classes=1000, embedding_size=4, block_size=300)
    >>> head(torch.randn(8, 4), torch.arange(8)).backward()
    >>> head.weight.grad.shape
    torch.Size([1000, 4])
    """

    draws: Tensor
    weight_momentum: Tensor | None

    def __init__(
        self,
        loss: Loss | str | Mapping[str, Any],
        num_classes: int,
        embedding_size: int = 512,
        *,
        num_samples: int | None = None,
        memory_budget: float = 256.0,
        block_size: int | None = None,
        compiled: bool | None = None,
        products: Products = "float32",
        sample_rate: float | None = None,
        sample_seed: int = 0,
    ) -> None:
        super().__init__(loss, num_classes, embedding_size, num_samples=num_samples)
        if memory_budget < 0:
            raise ValueError(f"memory_budget = {memory_budget} megabytes must be at least 0")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size = {block_size} must be at least 1")
        if sample_rate is not None and not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate = {sample_rate} must be in (0, 1], or None for all")
        self.memory_budget = memory_budget
        self.cosine_cache = CosineCache(int(memory_budget * MEGABYTE))
        self.block_size = block_size
        self.compiled = compiled
        choose_products(products, self.weight, 0)
        self.products: Products = products
        self._update_settings: dict[str, float] = {}
        self.sample_rate = sample_rate
        self.sample_seed = sample_seed
        if sample_rate is not None:
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
            refuse_other_optimizers(self.weight)
            self._drawn, self._drawn_version = 0, -1
            self._drawn_from: Tensor | None = None

    def update_in_backward(self, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        """Apply SGD to the class centers block by block inside the backward pass, from now on.

        Their gradient then never exists as a whole, which saves as much memory as the centers
        take. Set `learning_rate` before each backward pass, and leave the weight out of
        your optimiser: it no longer asks for a gradient. Every backward pass is a step, so
        gradients can neither be accumulated nor clipped nor averaged over replicas.

        Args:
            momentum: in [0, 1); 0 keeps none.
            weight_decay: at least 0.

        Raises:
            ValueError: classes are sampled (whose gradient is small anyway); out of range.

        >>> head = ChunkedHead("arcface", num_classes=100, embedding_size=4)
        >>> head.update_in_backward()
        >>> head.learning_rate = 0.1
        >>> before = head.weight.clone()
        >>> head(torch.randn(8, 4, requires_grad=True), torch.arange(8)).backward()
        >>> bool((head.weight != before).all()), head.weight.grad
        (True, None)
        """
        if self.sample_rate is not None:
            raise ValueError(
                f"sample_rate = {self.sample_rate} gives a sparse gradient, which RowwiseSGD "
                "applies; updating in the backward pass is for all classes (sample_rate None)"
            )
        if not 0 <= momentum < 1 or not weight_decay >= 0:
            raise ValueError(
                f"momentum = {momentum} must be in [0, 1), weight_decay = {weight_decay} at least 0"
            )
        self.weight.requires_grad_(False)
        self.register_buffer("weight_momentum", torch.zeros_like(self.weight) if momentum else None)
        self._update_settings = {"momentum": momentum, "weight_decay": weight_decay}

    def _update(self, block: slice, gradient: Tensor) -> None:
        buffers = [] if self.weight_momentum is None else [self.weight_momentum[block]]
        sgd_(
            [self.weight.detach()[block]],
            [gradient],
            buffers,
            lr=self.learning_rate,
            **self._update_settings,
        )

    def cross_entropy(self, batch: Batch) -> Tensor:
        if self._is_small(batch):
            return dense_cross_entropy(self, batch)
        everyone = batch.everyone
        rows, labels = self._local_classes(everyone.labels)
        features, own = everyone.unit_embeddings, batch.unit
        if self.bias is not None:
            features, own = everyone.feature_norm[:, None] * features, batch.norm[:, None] * own
        target = everyone.target_cosine
        target = target.float() if target.dtype.itemsize < 4 else target
        fused = self._fused_for(batch)
        block_size = self.block_size or block_size_for(
            len(target), target.device.type, fused is not None
        )
        step = Step(
            loss=self.loss,
            features=features,
            labels=labels,
            target=target,
            context=batch.everyones_context,
            own=batch.own,
            sizes=batch.sizes,
            rows=rows,
            block_size=block_size,
            cosine_cache=self.cosine_cache,
            world=self.world,
            update=self._update if self._update_settings else None,
            fused=fused,
            products=self.products_for(len(target)),
            keeps=torch.is_grad_enabled(),
        )
        total, cosine = NegativeLogSumExp.apply(own, batch.norm, self.weight, self.bias, step)
        modified = self.loss.modify_target(cosine, batch.context)
        return functional.softplus(total - self.loss.scale * modified, threshold=SOFTPLUS_THRESHOLD)

    def products_for(self, samples: int) -> Products:
        """The precision that the products of a batch take here: what ``auto`` comes to."""
        return choose_products(self.products, self.weight, samples * self.num_classes)

    def _is_small(self, batch: Batch) -> bool:
        """Whether all classes are one block of inner products, where blocks save nothing."""
        plain = self.sample_rate is None and self.block_size is None and not self._update_settings
        values = len(batch.labels) * self.num_classes
        return (
            plain and self.bias is not None and self.world.size == 1
            and values <= BLOCK_VALUES["cpu"] and self.products_for(len(batch.labels)) == "float32"
        )  # fmt: skip

    def _fused_for(self, batch: Batch) -> FusedBlock | None:
        """The compiled arithmetic, where it is wanted and the loss allows it."""
        samples, wanted = len(batch.everyone.labels), self.compiled
        device = batch.unit.device.type
        if wanted is None:
            wanted = worth_compiling(samples, len(self.classes), device)
        if not wanted:
            return None
        try:
            hash(self.loss)
        except TypeError:  # of a field such as a list; compilations are kept by loss
            return None
        context = batch.everyones_context.of_samples(slice(1))
        nothing = batch.everyone.target_cosine.new_zeros(1)
        has_slope = self.loss.negatives_and_slope(nothing[:, None], nothing, context) is not None
        fused = fused_block(self.loss, device) if has_slope else None
        return fused if fused is not None and fused.works else None

    def _local_classes(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        """(K,) the rows that take part, None for all; and the targets' positions among them."""
        position, own = self.position_of(labels)
        if self.sample_rate is None or not self.training:
            return None, torch.where(own, position, -1)
        if self._call.draw is None:
            self._call.draw = self._count_draw()
        seed = (self.sample_seed, self._call.draw, self.world.rank)
        count = round(self.sample_rate * len(self.classes))
        rows = sample_classes(position, own, len(self.classes), count, seed)
        if not len(rows):
            return rows, torch.full_like(labels, -1)
        return rows, torch.where(own, torch.searchsorted(rows, position), -1)

    def _count_draw(self) -> int:
        """The number of this draw; the buffer counts too, for checkpoints.

        Read from the buffer only where something else wrote it, since reading makes the host wait.
        """
        draws = self.draws
        # Tensors made in inference mode do not say whether they were written.
        known = not draws.is_inference() and draws is self._drawn_from
        if not known or draws._version != self._drawn_version:
            self._drawn = int(draws)
        draws += 1
        self._drawn += 1
        self._drawn_from = draws
        self._drawn_version = -1 if draws.is_inference() else draws._version
        return self._drawn - 1
