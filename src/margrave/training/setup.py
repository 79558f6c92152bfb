"""From settings to the moving parts of a training, placed and wrapped by Lightning Fabric."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from margrave import backbones
from margrave.checkpoints import load_strictly
from margrave.data import Batch, EpochSampler, TrainingImages, training_loader
from margrave.heads import HEADS, ChunkedHead, Head
from margrave.losses import Loss
from margrave.statistics import MomentumEncoder
from margrave.training.checkpoint import random_state, restore_random_state
from margrave.training.optimizer import build_optimizer
from margrave.training.settings import TrainingSettings

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}


@dataclass(frozen=True)
class Position:
    """Where a training stands: the next batch of an epoch, and the steps behind it."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Training:
    """All that moves while a model is trained.

    Attributes:
        settings: the loop's settings.
        fabric: launches, places, casts and wraps.
        network: the backbone itself.
        backbone: the same as Fabric wraps it.
        head: class centres, loss and statistics.
        optimizer: of both.
        average: the averaged weights, where asked for.
        encoder: KappaFace's momentum encoder, where its estimator asks for one.
        images: the training set.
        sampler: which images when.
        loader: batches of them.
        position: where training stands.
        unreadable: images that were skipped, and why.
    """

    settings: TrainingSettings
    fabric: Fabric
    network: nn.Module
    backbone: Callable[..., torch.Tensor]
    head: Head
    optimizer: Any
    average: MomentumEncoder | None
    encoder: MomentumEncoder | None
    images: TrainingImages
    sampler: EpochSampler
    loader: DataLoader[Batch]
    position: Position = Position()
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The network to judge and to keep: the averaged one if there is one."""
        return self.network if self.average is None else self.average.average

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in a whole epoch."""
        return self.sampler.batches_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """Everything that a checkpoint holds."""
        position = self.position
        return {
            "position": {
                "epoch": position.epoch,
                "batch": position.batch,
                "step": position.step,
            },
            **{name: module.state_dict() for name, module in self._modules().items()},
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(),
            "images": self._images(),
            "unreadable": dict(self.unreadable),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the checkpoint is of another model or loss.
        """
        if state.get("images") != self._images():
            raise ValueError(
                "the training images have changed since the checkpoint, "
                f"{state.get('images', {}).get('count')} then, {len(self.images)} now, or are of "
                "other identities; restore them, or start anew"
            )
        try:
            for name, module in self._modules().items():
                module.load_state_dict(state[name])
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint does not fit this configuration: {error}; "
                "resume with the configuration stored in the run, or start anew elsewhere"
            ) from error
        restore_random_state(state["random"])
        self.position = Position(**state["position"])
        self.unreadable = dict(state["unreadable"])

    def _images(self) -> dict[str, Any]:
        """What tells this training set from another: order and batches hang on it."""
        labels = np.ascontiguousarray(self.images.images.labels, np.int64)
        return {"count": len(labels), "labels": hashlib.sha256(labels.tobytes()).hexdigest()}

    def _modules(self) -> dict[str, nn.Module]:
        parts = {
            "backbone": self.network,
            "head": self.head,
            "average": self.average,
            "encoder": self.encoder,
        }
        return {name: module for name, module in parts.items() if module is not None}


def set_up(
    settings: TrainingSettings,
    images: TrainingImages,
    num_classes: int,
    backbone: Mapping[str, Any],
    loss: Loss,
    head: Mapping[str, Any],
    initial_state: Mapping[str, torch.Tensor] | None = None,
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

    Raises:
        ValueError: whatever a component refuses.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    # Its announcements of what was configured anyway would break the progress bar.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=1,
            precision=PRECISIONS[settings.precision],  # pyright: ignore[reportArgumentType]
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"training.accelerator = {settings.accelerator!r} cannot be used here: {error}; "
            "set it to cpu or auto"
        ) from error
    fabric.launch()
    torch.manual_seed(settings.seed)
    network = backbones.create(backbone)
    if initial_state is not None:
        load_strictly(network, initial_state, "initial_model")
    head_settings = {key: value for key, value in head.items() if key != "kind"}
    embedding_size = _embedding_size(network, images.size)
    built_head = HEADS.get(head["kind"])(
        loss, num_classes, embedding_size, num_samples=len(images), **head_settings
    )
    if settings.optimizer.centres_in_backward:
        if not isinstance(built_head, ChunkedHead):
            raise ValueError(
                f"optimizer.centres_in_backward needs head.kind chunked instead of {head['kind']}"
            )
        optimizing = settings.optimizer
        built_head.update_in_backward(optimizing.momentum, optimizing.weight_decay)
    if settings.channels_last:
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = None
    if settings.weight_average is not None:
        average = MomentumEncoder(network, settings.weight_average, warm_up=True)
    encoder = None
    if "momentum_embeddings" in built_head.reads:
        encoder = MomentumEncoder(network, settings.encoder_momentum)
    optimizer = build_optimizer(settings.optimizer, (network, built_head))
    wrapped = fabric.setup_module(network)
    for module in (built_head, average, encoder):
        if module is not None:
            module.to(fabric.device)
    sampler = EpochSampler(len(images), settings.batch_size, settings.seed)
    return Training(
        settings=settings,
        fabric=fabric,
        network=network,
        backbone=wrapped,
        head=built_head,
        optimizer=fabric.setup_optimizers(optimizer),
        average=average,
        encoder=encoder,
        images=images,
        sampler=sampler,
        loader=training_loader(
            images, sampler, settings.workers, pin_memory=fabric.device.type == "cuda"
        ),
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
