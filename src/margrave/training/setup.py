"""Builds the training state from settings; Lightning Fabric places and wraps the network."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn

from margrave import backbones
from margrave.backbones import MomentumEncoder
from margrave.backbones.memory_layout import memory_format
from margrave.data import (
    EpochSampler,
    FaceImages,
    TrainingImages,
    WindowSampler,
    training_loader,
)
from margrave.distributed import (
    Launch,
    current_launch,
    current_world,
    gather_objects,
    shard_parameters,
)
from margrave.hardware import core_share
from margrave.heads import HEADS, Head
from margrave.losses import Loss
from margrave.models import load_strictly
from margrave.training.optimizer import build_optimizer
from margrave.training.precision import PrecisionChoice, choose_precision
from margrave.training.settings import TrainingSettings
from margrave.training.state import TrainingState
from margrave.training.unused_parameters import unused_parameters

MAX_AUTO_WORKERS = 8
"""The upper limit of ``training.workers=auto``; more workers do not speed up one GPU."""


def set_up(
    settings: TrainingSettings,
    images: TrainingImages,
    num_classes: int,
    backbone: Mapping[str, Any],
    loss: Loss,
    head: Mapping[str, Any],
    initial_state: Mapping[str, torch.Tensor] | None = None,
    precision: PrecisionChoice | None = None,
) -> TrainingState:
    """Build the training state from settings; every rank must call it.

    Args:
        settings: the training settings.
        images: the training set.
        num_classes: number of identities in the training set.
        backbone: the backbone's specification, including embedding_size.
        loss: the loss to minimize.
        head: the head's specification: ``{"kind": name, **settings}``.
        initial_state: initial weights of the backbone, for fine-tuning.
        precision: when resuming, the precision with which the run began; None chooses one.

    Raises:
        ValueError: a component rejects its settings.
    """
    launch = current_launch()
    _check_batch_size(settings, launch.size, len(images))
    _set_threads(settings, launch)
    fabric = _launch_fabric(settings, launch)
    # Some choices depend on the machine. Here and below, every rank uses the first rank's choice.
    workers = gather_objects(
        _count_workers(settings, images, fabric.device, launch), current_world()
    )[0]
    settings = settings.model_copy(update={"workers": workers})
    head = _choose_head(head, launch.size)
    torch.manual_seed(settings.seed)
    try:
        network = backbones.create(backbone)
    # For example, sizes beyond 64 bits, or too little memory.
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"backbone {dict(backbone)} cannot be built ({reason})") from error
    if initial_state is not None:
        load_strictly(network, initial_state, "initial_model")
    built_head = _build_head(
        settings, head, loss, num_classes, _embedding_size(network, images.size), len(images)
    )
    network_is_sharded = settings.strategy == "fsdp" and launch.size > 1
    layout = memory_format(network, settings.channels_last)
    # The training loop reads the memory layout of the images from the settings.
    settings = settings.model_copy(update={"channels_last": layout == torch.channels_last})
    # FSDP needs contiguous parameters.
    if not network_is_sharded:
        network = network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    average = None
    if settings.weight_average is not None:
        average = MomentumEncoder(network, settings.weight_average, warm_up=True)
    encoder = None
    if "momentum_embeddings" in built_head.reads:
        encoder = MomentumEncoder(network, settings.encoder_momentum)
    # Over all processes.
    micro_batch_size = settings.batch_size // settings.accumulate
    choice = precision or choose_precision(
        settings.precision, network, images.size, micro_batch_size // launch.size, fabric.device
    )
    if choice.precision == "float16" and settings.optimizer.centers_in_backward:
        reason = "float16 must be able to skip steps, which optimizer.centers_in_backward prevents"
        choice = PrecisionChoice("float32", reason)
    choice = gather_objects(choice, current_world())[0]
    # `products` is the precision of the head's matrix products.
    automatic_products = built_head.products == "auto"
    products = built_head.products_for(micro_batch_size)
    built_head.products = gather_objects(products, current_world())[0]
    unused = []
    if isinstance(fabric.strategy, _LateDDPStrategy):
        if settings.find_unused_parameters == "auto":
            unused = _find_unused_parameters(network, images.size)
            unused = gather_objects(unused, current_world())[0]
        find_unused = bool(unused) or settings.find_unused_parameters is True
        settings = settings.model_copy(update={"find_unused_parameters": find_unused})
        fabric.strategy.find_unused_parameters = find_unused
    dtype = torch.float64 if choice.precision == "float64" else None
    # With None, the dtype stays.
    network = network.to(dtype)
    full_network = copy.deepcopy(network).requires_grad_(False) if network_is_sharded else None
    with warnings.catch_warnings():
        # The oldest supported torch has no replacement for broadcast_buffers.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        wrapped = fabric.setup_module(network)
    for module in (built_head, average, encoder):
        if module is not None:
            module.to(fabric.device, dtype)
    optimizer = build_optimizer(settings.optimizer, (network, built_head))
    sampler = _build_sampler(images.images, settings, workers, launch)
    return TrainingState(
        settings=settings,
        fabric=fabric,
        precision=choice,
        images=images,
        sampler=sampler,
        loader=training_loader(images, sampler, workers, pin_memory=fabric.device.type == "cuda"),
        network=network,
        full_network=full_network,
        backbone=wrapped,
        head=built_head,
        optimizer=optimizer,
        average=average,
        encoder=encoder,
        automatic_products=automatic_products,
        unused_parameters=unused,
    )


def _set_threads(settings: TrainingSettings, launch: Launch) -> None:
    """Limit torch's threads; by default, torch ignores a container's limit and uses all cores."""
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(core_share(launch.local_size))


def _count_workers(
    settings: TrainingSettings, images: TrainingImages, device: torch.device, launch: Launch
) -> int:
    if settings.workers != "auto":
        return settings.workers
    if device.type == "cpu" or images.is_cached:
        return 0
    return min(core_share(launch.local_size) - 1, MAX_AUTO_WORKERS)


def _build_sampler(
    images: FaceImages, settings: TrainingSettings, workers: int, launch: Launch
) -> EpochSampler:
    """Build the sampler for this rank.

    Images in shards are stored in pieces of consecutive images. Their sampler shuffles them only
    within windows of several pieces, so that each piece is fetched once.
    """
    common: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "rank": launch.rank,
        "world_size": launch.size,
    }
    if images.pieces is not None:
        return WindowSampler(images.pieces, images.window, workers=workers, **common)
    return EpochSampler(len(images), **common)


def _launch_fabric(settings: TrainingSettings, launch: Launch) -> Fabric:
    """Create Fabric and, with several processes, join the process group."""
    # Fabric's log messages about the configuration would break the progress bar.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=launch.local_size,
            num_nodes=launch.size // launch.local_size,
            strategy=_build_strategy(settings, launch.size),
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"training.accelerator = {settings.accelerator!r} is not available on this machine: "
            f"{error}; set it to cpu or auto"
        ) from error
    fabric.launch()
    return fabric


def _build_head(
    settings: TrainingSettings,
    head: Mapping[str, Any],
    loss: Loss,
    num_classes: int,
    embedding_size: int,
    num_samples: int,
) -> Head:
    head_settings = {key: value for key, value in head.items() if key != "kind"}
    built_head = HEADS.get(head["kind"])(
        loss, num_classes, embedding_size, num_samples=num_samples, **head_settings
    )
    if settings.optimizer.centers_in_backward:
        built_head.update_in_backward(settings.optimizer.momentum, settings.optimizer.weight_decay)
    return built_head


def _build_strategy(settings: TrainingSettings, processes: int) -> Any:
    if processes == 1:
        return "auto"
    # Longer than RankWatch's limit, so that RankWatch reports first: its error names the process.
    timeout = timedelta(seconds=settings.rank_stall_seconds + 60)
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            parallelize_fn=shard_parameters,
            data_parallel_size=processes,
            tensor_parallel_size=1,
            timeout=timeout,
        )
    # The loop itself averages batch norm's running statistics over ranks, once per step.
    return _LateDDPStrategy(broadcast_buffers=False, timeout=timeout)


class _LateDDPStrategy(DDPStrategy):
    """DDP whose `find_unused_parameters` is set after the launch, once the network is known."""

    find_unused_parameters = False

    def setup_module(self, module: nn.Module) -> Any:
        self._ddp_kwargs["find_unused_parameters"] = self.find_unused_parameters
        return super().setup_module(module)


def _find_unused_parameters(network: nn.Module, image_size: int) -> list[str]:
    """Names of trainable parameters that get no gradient; Margrave's networks have none."""
    if type(network).__module__.startswith("margrave."):
        return []
    return unused_parameters(network, image_size)


def _check_batch_size(settings: TrainingSettings, processes: int, num_images: int) -> None:
    """Check the batch size, before any slow work starts."""
    if num_images < settings.batch_size:
        raise ValueError(
            f"{num_images} images do not fill one step of training.batch_size = "
            f"{settings.batch_size}; lower it, or add images"
        )
    micro_batches = processes * settings.accumulate
    if settings.batch_size < 2 * micro_batches:
        raise ValueError(
            f"training.batch_size = {settings.batch_size} split over {processes} processes and "
            f"accumulate = {settings.accumulate} leaves micro-batches of fewer than two images, "
            f"which batch norm cannot use; set it to {2 * micro_batches} or more, or start fewer "
            "processes"
        )


def _choose_head(head: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The configured head; with several processes, ``chunked`` becomes ``sharded``."""
    if processes == 1 or HEADS.get(head["kind"]).sharded:
        return dict(head)
    if head["kind"] == "chunked":
        return {**head, "kind": "sharded"}
    raise ValueError(
        f"head.kind = {head['kind']!r} cannot be split over {processes} processes; "
        "set it to sharded"
    )


@torch.no_grad()
def _embedding_size(network: nn.Module, image_size: int) -> int:
    """The number of features per embedding, from one forward pass."""
    was_training = network.training
    try:
        output = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise ValueError(
            f"{type(network).__name__} cannot process images of shape "
            f"(1, 3, {image_size}, {image_size}): {error}; set data.image_size to the size that "
            "the network expects"
        ) from error
    network.train(was_training)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"{type(network).__name__} returned {shape} for one image; "
            "a backbone must return unnormalized embeddings of shape (batch, features)"
        )
    return output.shape[1]
