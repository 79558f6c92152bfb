"""The default head: exact, without ever storing a (batch, classes) matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from margrave.heads.batch import Batch
from margrave.heads.centers import center_rows, nearest_centers
from margrave.heads.contract import HEADS, Head
from margrave.heads.cosine_cache import CosineCache
from margrave.heads.cost import HeadCost, Workload
from margrave.heads.cross_entropy import ReducedNegatives, ReplicatedParameter
from margrave.heads.dense import dense_cross_entropy
from margrave.heads.fused_block import FusedBlock, can_compile, fused_block
from margrave.heads.products import Products, choose_products, product_dtype
from margrave.heads.rowwise_sgd import require_rowwise_optimizer, sgd_
from margrave.heads.sampling import sample_classes
from margrave.heads.step import Step
from margrave.losses import Loss
from margrave.statistics import Observation

MEGABYTE = 2**20
BLOCK_VALUES = {"cpu": 2**19, "cuda": 2**25}
"""Cosines per block: as many as fit into a CPU core's cache, or enough to keep a GPU busy."""
FUSED_BLOCK_VALUES = {"cpu": 2**22, "cuda": 2**27}
"""Cosines per compiled block: more, as the overhead of a call weighs more in a faster block."""
MIN_BLOCK, MAX_BLOCK = 256, {"cpu": 2**14, "cuda": 2**17}
"""Limits for the number of classes per block."""
MIN_COMPILED_COSINES = 2**23
"""Minimum batch × classes at which compilation pays off."""


def block_size_for(cosines_per_class: int, device: str, fused: bool) -> int:
    """Number of classes per block; accelerators other than CUDA use CUDA's sizes.

    `cosines_per_class` is the number of samples times the number of centers per class.
    """
    device_kind = "cpu" if device == "cpu" else "cuda"
    classes = (FUSED_BLOCK_VALUES if fused else BLOCK_VALUES)[device_kind] // cosines_per_class
    return min(max(classes, MIN_BLOCK), MAX_BLOCK[device_kind])


def is_worth_compiling(samples: int, classes: int, device: str) -> bool:
    """Whether a compiler exists and the batch is large enough for compilation to pay off."""
    return samples * classes >= MIN_COMPILED_COSINES and can_compile(device)


@HEADS.register("chunked")
class ChunkedHead(Head):
    """The dense head's loss and gradient, computed in cache-sized blocks of classes.

    The loss is log(1 + e^{lse − s·T}) with lse = log Σ_{j≠y} e^{s·N_j} over all blocks, or a sum of
    one sigmoid loss per class. `margrave.losses.Loss` defines s, T and N.

    Args:
        loss: the loss, as in `Head`.
        num_classes: C, the number of classes.
        embedding_size: D, the number of features.
        num_samples: number of training images, as in `Head`.
        centers_per_class: number of centers of each class, as in `Head`.
        memory_budget: megabytes of cosines to cache for the backward pass, which recomputes the
            others with a fourth matrix product. Caching all cosines takes B · C · 4 bytes (half
            with bfloat16 products). The head keeps the buffer between steps.
        block_size: number of classes per block. None chooses it by batch size and device.
        compiled: whether to fuse the elementwise operations of a block with `torch.compile`, which
            takes up to a minute in the first step and needs a C++ compiler (on CPUs) or Triton (on
            GPUs). None fuses them if there is a compiler and batch × classes is at least 8 million.
        products: precision of a float32 head's three matrix products: ``float32``; ``tf32``, on
            GPUs; ``bfloat16``; or ``auto``, bfloat16 where it is native (CPUs with AMX or
            AVX512-BF16, GPUs since Ampere) and batch × classes is at least a million. The weight,
            its gradient and momentum, log-sum-exp, statistics and target cosines stay float32.
        sample_rate: fraction of the classes to use in each training step, in (0, 1]: the batch's
            classes and randomly sampled others (Partial FC). The weight's gradient is then sparse:
            use `margrave.heads.RowwiseSGD`. None uses all classes and a dense gradient.
        sample_seed: seed of the class sampling; runs with the same seed sample the same classes.

    Raises:
        ValueError: see `Head`; or a setting is out of range.

    Source (sampling): Partial FC, arXiv 2010.05222 and 2203.15565.

    >>> head = ChunkedHead("adaface", num_classes=1000, embedding_size=4, block_size=300)
    >>> head(torch.randn(8, 4), torch.arange(8)).backward()
    >>> head.weight.grad.shape
    torch.Size([1000, 4])
    """

    draws: Tensor
    """() number of class samplings so far; exists only with `sample_rate`."""

    weight_momentum: Tensor | None
    """Momentum of `weight`; exists only after `update_in_backward`, None without momentum."""

    def __init__(
        self,
        loss: Loss | str | Mapping[str, Any],
        num_classes: int,
        embedding_size: int = 512,
        *,
        num_samples: int | None = None,
        centers_per_class: int = 1,
        memory_budget: float = 256.0,
        block_size: int | None = None,
        compiled: bool | None = None,
        products: Products = "float32",
        sample_rate: float | None = None,
        sample_seed: int = 0,
    ) -> None:
        super().__init__(
            loss,
            num_classes,
            embedding_size,
            num_samples=num_samples,
            centers_per_class=centers_per_class,
        )
        if memory_budget < 0:
            raise ValueError(f"memory_budget = {memory_budget} (megabytes) must be at least 0")
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size = {block_size} must be at least 1")
        if sample_rate is not None and not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate = {sample_rate} must be in (0, 1], or None")
        self.memory_budget = memory_budget
        self.cosine_cache = CosineCache(int(memory_budget * MEGABYTE))
        self.block_size = block_size
        self.compiled = compiled
        choose_products(products, self.weight, 0)  # raises an error for unsupported products
        self.products = products
        # The arguments of `update_in_backward`; empty if it was not called.
        self._update_settings: dict[str, float] = {}
        self.sample_rate = sample_rate
        self.sample_seed = sample_seed
        if sample_rate is not None:
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
            require_rowwise_optimizer(self.weight)
            # A copy of `draws` on the host. It is valid while `draws` is the tensor
            # `_tracked_draws` and has the version `_draws_version`.
            self._draw_count = 0
            self._tracked_draws: Tensor | None = None
            self._draws_version = -1

    def update_in_backward(self, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        """From now on, apply SGD to the class centers block by block inside the backward pass.

        The full gradient of the centers is then never stored, which saves as much memory as
        the centers occupy. Set `learning_rate` before each backward pass, and do not pass the
        weight to your optimizer, since it no longer requires a gradient. Every backward pass
        is a step, so gradients cannot be accumulated, clipped or averaged over replicas.

        Args:
            momentum: SGD momentum in [0, 1); 0 allocates no momentum buffer.
            weight_decay: at least 0.

        Raises:
            ValueError: `sample_rate` is set (its sparse gradient is small anyway), or an argument
                is out of range.

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
                f"sample_rate = {self.sample_rate} gives a sparse gradient, which cannot be "
                "applied in the backward pass; use RowwiseSGD, or set sample_rate to None"
            )
        if not 0 <= momentum < 1 or not weight_decay >= 0:
            raise ValueError(
                f"momentum = {momentum} must be in [0, 1), and "
                f"weight_decay = {weight_decay} at least 0"
            )
        self.weight.requires_grad_(False)
        self.register_buffer("weight_momentum", torch.zeros_like(self.weight) if momentum else None)
        self._update_settings = {"momentum": momentum, "weight_decay": weight_decay}

    def _update_centers(self, rows: slice, gradient: Tensor) -> None:
        momentum = self.weight_momentum
        momentum_buffers = [] if momentum is None else [momentum.flatten(0, -2)[rows]]
        sgd_(
            [self.centers.detach()[rows]],
            [gradient],
            momentum_buffers,
            lr=self.learning_rate,
            **self._update_settings,
        )

    def cross_entropy(self, batch: Batch) -> Tensor:
        if self._uses_dense_computation(batch):
            return dense_cross_entropy(self, batch)
        gathered = batch.gathered
        sampled_classes, positions = self.step_classes(gathered.labels)
        features, rank_features = gathered.unit_embeddings, batch.unit
        if self.bias is not None:  # a loss of inner products multiplies x instead of x̂
            features = gathered.feature_norm[:, None] * features
            rank_features = batch.norm[:, None] * rank_features
        target_cosine = gathered.target_cosine
        if target_cosine.dtype.itemsize < 4:
            target_cosine = target_cosine.float()
        fused = self._get_fused_block(batch)
        centers_per_class = self.centers_per_class
        block_size = self.block_size or block_size_for(
            len(target_cosine) * centers_per_class, target_cosine.device.type, fused is not None
        )
        sampled_rows = None
        if sampled_classes is not None:
            sampled_rows = center_rows(sampled_classes, centers_per_class)
        reducer = self.reducer()
        step = Step(
            loss=self.loss,
            reducer=reducer,
            features=features,
            positions=positions,
            target_cosine=target_cosine,
            context=batch.gathered_context,
            rank_rows=batch.rank_rows,
            sizes=batch.sizes,
            centers_per_class=centers_per_class,
            target_centers=self._target_centers(gathered, positions),
            sampled_rows=sampled_rows,
            block_size=block_size,
            cosine_cache=self.cosine_cache,
            world=self.world,
            update=self._update_centers if self._update_settings else None,
            fused=fused,
            products=self.products_for(len(target_cosine)),
            needs_backward=torch.is_grad_enabled(),
        )
        sigmoid_bias = self.sigmoid_bias
        if sigmoid_bias is not None and self.world.size > 1:
            sigmoid_bias = ReplicatedParameter.apply(sigmoid_bias, self.world)
        reduced, rank_target_cosine = ReducedNegatives.apply(
            rank_features, batch.norm, self.weight, self.bias, sigmoid_bias, step
        )
        target = self.loss.modify_target(rank_target_cosine, batch.context)
        return reducer.sample_losses(reduced, target, sigmoid_bias)

    def _target_centers(self, gathered: Observation, positions: Tensor) -> Tensor:
        """(A,) position of each target's nearest center among the centers of the step's classes.

        `positions` (A,) are the targets' positions among these classes, −1 if another rank owns the
        target's class. Such a target gets any position.
        """
        positions = positions.clamp_min(0)
        if self.centers_per_class == 1 or not self.classes:
            return positions
        with torch.no_grad():
            class_rows, _ = self.local_positions(gathered.labels)
            cosines = self.cosines_of_target(gathered.unit_embeddings, class_rows)
            _, nearest = nearest_centers(cosines, self.centers_per_class)
        assert nearest is not None
        return positions * self.centers_per_class + nearest[:, 0]

    def products_for(self, samples: int) -> Products:
        return choose_products(self.products, self.weight, samples * self.num_classes)

    def cost(self, workload: Workload) -> HeadCost:
        samples, centers_per_class = workload.samples, self.centers_per_class
        num_centers, num_features = self.centers.shape
        num_owned_classes = num_centers // centers_per_class
        is_sampled = self.sample_rate is not None
        value_bytes = self.weight.itemsize
        sampled_centers = round((self.sample_rate or 1) * num_centers)
        local_centers = min(max(sampled_centers, samples * centers_per_class), num_centers)
        products = choose_products(
            self.products, self.weight, samples * num_owned_classes, workload.native_bfloat16
        )
        product_bytes = product_dtype(products, self.weight).itemsize
        fused = self.compiled
        if fused is None:
            fused = is_worth_compiling(samples, num_owned_classes, workload.device)
        block_size = self.block_size or block_size_for(
            samples * centers_per_class, workload.device, fused
        )
        block_centers = centers_per_class * block_size
        block_center_bytes = value_bytes * min(block_centers, num_centers) * num_features
        local_center_bytes = value_bytes * local_centers * num_features
        if workload.in_backward:
            gradient_bytes = block_center_bytes
        elif is_sampled:
            # The gradient, and RowwiseSGD's copies of the gradient, the sampled rows and their
            # momentum.
            gradient_bytes = (3 + (workload.moments > 0)) * local_center_bytes
        else:
            gradient_bytes = local_center_bytes
        # An uncompiled block stores negatives and their gradient in addition to its products.
        block_value_bytes = product_bytes if fused else 3 * value_bytes
        cosine_bytes = product_bytes * samples * local_centers
        budget_bytes = self.memory_budget * MEGABYTE
        memory: dict[str, float] = {
            "class centers": self.weight.nbytes,
            "momentum of centers": workload.moments * self.weight.nbytes,
            "gradient of centers": gradient_bytes,
            "cached cosines": min(budget_bytes, cosine_bytes),
            "blocks": block_value_bytes * samples * min(block_centers, local_centers)
            + block_center_bytes,
            # A rough count of the tensors that are as large as the embeddings.
            "batch": 8 * value_bytes * samples * num_features,
        }
        if is_sampled:
            # The scores of all classes, and temporary tensors to select the largest ones.
            memory["sampling"] = 4 * value_bytes * num_centers
        return HeadCost(
            memory=memory | self.statistics_memory(),
            local_centers=local_centers,
            product_bytes=product_bytes,
            # A rank of a sharded head may own no classes.
            recomputed_fraction=1 - min(1.0, budget_bytes / cosine_bytes) if cosine_bytes else 0.0,
            passes=5,
            sparse=is_sampled,
        )

    def _uses_dense_computation(self, batch: Batch) -> bool:
        """Whether to compute the whole batch at once instead of in blocks.

        True for a loss of inner products on one rank with default settings and float32 products, if
        batch × classes is at most `BLOCK_VALUES["cpu"]`, whatever the device.
        """
        is_default = (
            self.sample_rate is None and self.block_size is None and not self._update_settings
        )
        values = len(batch.labels) * self.num_classes
        return (
            is_default and self.bias is not None and self.world.size == 1
            and values <= BLOCK_VALUES["cpu"] and self.products_for(len(batch.labels)) == "float32"
        )  # fmt: skip

    def _get_fused_block(self, batch: Batch) -> FusedBlock | None:
        """The compiled operations on a block, or None to compute blocks uncompiled.

        None if compilation is disabled, is not worthwhile or has failed, or if the loss's
        `negatives_and_slope` returns None.
        """
        device = batch.unit.device.type
        enabled = self.compiled
        if enabled is None:
            samples = len(batch.gathered.labels)
            enabled = is_worth_compiling(samples, len(self.classes), device)
        if not enabled:
            return None
        try:
            hash(self.loss)
        except TypeError:
            # `fused_block` caches by loss, but for example a list field makes a loss unhashable.
            return None
        # Try the loss on a single cosine to learn whether it returns a slope.
        context = batch.gathered_context.select_samples(slice(1))
        zero = batch.gathered.target_cosine.new_zeros(1)
        has_slope = self.loss.modify_negatives_and_slope(zero[:, None], zero, context) is not None
        sigmoid = self.sigmoid_bias is not None
        fused = (
            fused_block(self.loss, device, sigmoid, self.centers_per_class) if has_slope else None
        )
        return fused if fused is not None and fused.works else None

    def step_classes(self, labels: Tensor) -> tuple[Tensor | None, Tensor]:
        if self.sample_rate is None or not self.training:
            return super().step_classes(labels)
        position, is_owned = self.local_positions(labels)
        if self._call.draw is None:
            self._call.draw = self._count_draw()
        seed = (self.sample_seed, self._call.draw, self.world.rank)
        count = round(self.sample_rate * len(self.classes))
        sampled_classes = sample_classes(position, is_owned, len(self.classes), count, seed)
        if not len(sampled_classes):
            return sampled_classes, torch.full_like(labels, -1)
        positions = torch.searchsorted(sampled_classes, position)
        return sampled_classes, torch.where(is_owned, positions, -1)

    def _count_draw(self) -> int:
        """Count one more class sampling and return its index, from 0.

        The buffer `draws` stores the count in checkpoints. It is read only if other code may have
        written to it, because reading makes the host wait for the device.
        """
        draws = self.draws
        # Tensors created in inference mode have no version counter.
        is_tracked = not draws.is_inference() and draws is self._tracked_draws
        if not is_tracked or draws._version != self._draws_version:
            self._draw_count = int(draws)
        draws += 1
        self._draw_count += 1
        self._tracked_draws = draws
        self._draws_version = -1 if draws.is_inference() else draws._version
        return self._draw_count - 1
