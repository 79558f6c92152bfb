"""From settings to the moving parts of a training, placed and wrapped by Lightning Fabric."""

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
from margrave.backbones.memory_layout import memory_format
from margrave.checkpoints import load_strictly
from margrave.data import (
    EpochSampler,
    FaceImages,
    ShardImages,
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
from margrave.heads import HEADS, ChunkedHead, Head
from margrave.losses import Loss
from margrave.statistics import MomentumEncoder
from margrave.training.optimizer import build_optimizer
from margrave.training.precision import PrecisionChoice, choose_precision
from margrave.training.settings import TrainingSettings
from margrave.training.state import Training
from margrave.training.unused_parameters import unused_parameters

MOST_WORKERS = 8
"""What `training.workers` auto comes to at most: enough for one GPU."""


def set_up(
    settings: TrainingSettings,
    images: TrainingImages,
    num_classes: int,
    backbone: Mapping[str, Any],
    loss: Loss,
    head: Mapping[str, Any],
    initial_state: Mapping[str, torch.Tensor] | None = None,
    precision: PrecisionChoice | None = None,
) -> Training:
    """Build every part of a training.

    Args:
        settings: the loop's settings.
        images: the training set.
        num_classes: identities in it.
        backbone: its specification, with embedding_size.
        loss: what to minimise.
        head: ``{"kind": name, **settings}``.
        initial_state: weights of the backbone to begin with (fine-tuning).
        precision: the settings' choice where it was made before (resuming).

    Raises:
        ValueError: whatever a component refuses.
    """
    launch = current_launch()
    _check_batches(settings, launch.size)
    _set_threads(settings, launch)
    fabric = _launch_fabric(settings, launch)
    # What a rank finds out for itself all take from the first, here and below.
    workers = gather_objects(
        _workers_for(settings, images, fabric.device, launch), current_world()
    )[0]
    settings = settings.model_copy(update={"workers": workers})
    head = _head_for(head, launch.size)
    torch.manual_seed(settings.seed)
    try:
        network = backbones.create(backbone)
    # Sizes beyond 64 bits, and memory that there is not.
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"backbone {dict(backbone)} cannot be built ({reason})") from error
    if initial_state is not None:
        load_strictly(network, initial_state, "initial_model")
    built_head = _build_head(
        settings, head, loss, num_classes, _embedding_size(network, images.size), len(images)
    )
    split = settings.strategy == "fsdp" and launch.size > 1
    layout = memory_format(network, settings.channels_last)
    # The loop reads from the settings how images are to lie in memory.
    settings = settings.model_copy(update={"channels_last": layout == torch.channels_last})
    # FSDP takes parameters in their usual layout alone.
    if not split:
        network = network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    average = None
    if settings.weight_average is not None:
        average = MomentumEncoder(network, settings.weight_average, warm_up=True)
    encoder = None
    if "momentum_embeddings" in built_head.reads:
        encoder = MomentumEncoder(network, settings.encoder_momentum)
    micro_batch = settings.batch_size // settings.accumulate
    choice = precision or choose_precision(
        settings.precision, network, images.size, micro_batch // launch.size, fabric.device
    )
    if choice.precision == "float16" and settings.optimizer.centres_in_backward:
        reason = "optimizer.centres_in_backward cannot leave out a step, as float16 must"
        choice = PrecisionChoice("float32", reason)
    choice = gather_objects(choice, current_world())[0]
    automatic = isinstance(built_head, ChunkedHead) and built_head.products == "auto"
    if isinstance(built_head, ChunkedHead):
        chosen = built_head.products_for(micro_batch)
        built_head.products = gather_objects(chosen, current_world())[0]
    unused = []
    if isinstance(fabric.strategy, _DataParallel):
        if settings.find_unused_parameters == "auto":
            unused = gather_objects(_unused(network, images.size), current_world())[0]
        find_unused = bool(unused) or settings.find_unused_parameters is True
        settings = settings.model_copy(update={"find_unused_parameters": find_unused})
        fabric.strategy.find_unused_parameters = find_unused
    double = torch.float64 if choice.precision == "float64" else None
    network = network.to(double)
    whole_network = copy.deepcopy(network).requires_grad_(False) if split else None
    with warnings.catch_warnings():
        # The name that succeeds it is not known to the oldest torch that we run with.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        wrapped = fabric.setup_module(network)
    for module in (built_head, average, encoder):
        if module is not None:
            module.to(fabric.device, double)
    optimizer = build_optimizer(settings.optimizer, (network, built_head))
    sampler = _sampler_for(images.images, settings, workers, launch)
    return Training(
        settings=settings,
        fabric=fabric,
        network=network,
        whole_network=whole_network,
        backbone=wrapped,
        head=built_head,
        optimizer=optimizer,
        average=average,
        encoder=encoder,
        images=images,
        sampler=sampler,
        loader=training_loader(images, sampler, workers, pin_memory=fabric.device.type == "cuda"),
        precision=choice,
        automatic_products=automatic,
        unused_parameters=unused,
    )


def _set_threads(settings: TrainingSettings, launch: Launch) -> None:
    """Torch takes all cores of the machine, also where a container may use two of them."""
    if settings.threads != "auto":
        torch.set_num_threads(settings.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(core_share(launch.local_size))


def _workers_for(
    settings: TrainingSettings, images: TrainingImages, device: torch.device, launch: Launch
) -> int:
    if settings.workers != "auto":
        return settings.workers
    if device.type == "cpu" or images.is_cached:
        return 0
    return min(core_share(launch.local_size) - 1, MOST_WORKERS)


def _sampler_for(
    images: FaceImages, settings: TrainingSettings, workers: int, launch: Launch
) -> EpochSampler:
    """Any order of images at hand; one that keeps neighbours together for shards."""
    common: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "rank": launch.rank,
        "world_size": launch.size,
    }
    if isinstance(images, ShardImages):
        return WindowSampler(images.pieces, images.window, workers=workers, **common)
    return EpochSampler(len(images), **common)


def _launch_fabric(settings: TrainingSettings, launch: Launch) -> Fabric:
    """Join the processes that train together, if there are several."""
    # Its announcements of what was configured anyway would break the progress bar.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=launch.local_size,
            num_nodes=launch.size // launch.local_size,
            strategy=_strategy(settings, launch.size),
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"training.accelerator = {settings.accelerator!r} cannot be used here: {error}; "
            "set it to cpu or auto"
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
    if settings.optimizer.centres_in_backward:
        if not isinstance(built_head, ChunkedHead):
            raise ValueError(
                f"optimizer.centres_in_backward needs head.kind chunked instead of {head['kind']}"
            )
        optimizing = settings.optimizer
        built_head.update_in_backward(optimizing.momentum, optimizing.weight_decay)
    return built_head


def _strategy(settings: TrainingSettings, processes: int) -> Any:
    if processes == 1:
        return "auto"
    # Torch's own limit comes after the watch's, which names the process.
    timeout = timedelta(seconds=settings.rank_stall_seconds + 60)
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            parallelize_fn=shard_parameters,
            data_parallel_size=processes,
            tensor_parallel_size=1,
            timeout=timeout,
        )
    # Running averages are averaged over ranks once a step, see the loop.
    return _DataParallel(broadcast_buffers=False, timeout=timeout)


class _DataParallel(DDPStrategy):
    """DDP that is told of unused parameters after the launch, when the network is known."""

    find_unused_parameters = False

    def setup_module(self, module: nn.Module) -> Any:
        self._ddp_kwargs["find_unused_parameters"] = self.find_unused_parameters
        return super().setup_module(module)


def _unused(network: nn.Module, image_size: int) -> list[str]:
    """Trainable parameters that a step leaves out; our own networks have none."""
    if type(network).__module__.startswith("margrave."):
        return []
    return unused_parameters(network, image_size)


def _check_batches(settings: TrainingSettings, processes: int) -> None:
    parts = processes * settings.accumulate
    if settings.batch_size < 2 * parts:
        raise ValueError(
            f"training.batch_size = {settings.batch_size} leaves parts of less than two images to "
            f"{processes} processes x accumulate = {settings.accumulate}, which batch norm cannot "
            f"use; set it to {2 * parts} or more, or start fewer processes"
        )


def _head_for(head: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """The head that several processes can share; alone, the one that was asked for."""
    if processes == 1 or head["kind"] == "sharded":
        return dict(head)
    if head["kind"] == "chunked":
        return {**head, "kind": "sharded"}
    raise ValueError(
        f"head.kind = {head['kind']!r} would have {processes} processes train a head each; "
        "set it to sharded"
    )


@torch.no_grad()
def _embedding_size(network: nn.Module, image_size: int) -> int:
    """D of anybody's network, found by trying it."""
    was_training = network.training
    try:
        output = network.eval()(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise ValueError(
            f"{type(network).__name__} cannot take images of (1, 3, {image_size}, {image_size}): "
            f"{error}; set data.image_size to its own"
        ) from error
    network.train(was_training)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"{type(network).__name__} answers {shape} to one image; "
            "a backbone must give (batch, features), unnormalised"
        )
    return output.shape[1]
