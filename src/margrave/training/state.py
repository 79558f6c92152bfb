"""A training as it stands: its moving parts, and how a checkpoint holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from margrave.data import Batch, EpochSampler, TrainingImages
from margrave.distributed import World, current_world, whole
from margrave.distributed.tensor_store import load_tensors, stored_tensors
from margrave.heads import ChunkedHead, Head
from margrave.heads.products import choose_products
from margrave.statistics import MomentumEncoder
from margrave.training.checkpoint import read_state, save_checkpoint
from margrave.training.precision import LossScale, Precision, PrecisionChoice
from margrave.training.settings import TrainingSettings


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
        whole_network: where its parameters are split over ranks, room to gather them.
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
        precision: what the network computes in.
        loss_scale: of float16.
        automatic_products: whether the head's precision was chosen for this machine.
        unused_parameters: of the network, that DDP was told to expect no gradient of.
        notes: what somebody who resumes should know.
    """

    settings: TrainingSettings
    fabric: Fabric
    network: nn.Module
    whole_network: nn.Module | None
    backbone: _FabricModule
    head: Head
    optimizer: torch.optim.Optimizer
    average: MomentumEncoder | None
    encoder: MomentumEncoder | None
    images: TrainingImages
    sampler: EpochSampler
    loader: DataLoader[Batch]
    precision: PrecisionChoice
    loss_scale: LossScale | None = None
    automatic_products: bool = False
    unused_parameters: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    position: Position = Position()
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> nn.Module:
        """The network to judge and to keep: the averaged one if there is one.

        Every rank asks for it: parameters that are split over ranks are gathered.
        """
        if self.average is not None:
            return self.average.average
        if self.whole_network is None:
            return self.network
        state = {name: whole(value) for name, value in self.network.state_dict().items()}
        self.whole_network.load_state_dict(state)
        return self.whole_network.to(self.fabric.device)

    @property
    def world(self) -> World:
        """The processes that train together."""
        return current_world()

    def __post_init__(self) -> None:
        self._set_precision(self.precision)

    def _set_precision(self, choice: PrecisionChoice) -> None:
        self.precision = choice
        if choice.precision != "float16":
            self.loss_scale = None
        elif self.loss_scale is None:
            self.loss_scale = LossScale()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in a whole epoch."""
        return self.sampler.batches_per_epoch

    def save(self, folder: Path, log_length: int) -> None:
        """Write a checkpoint into the run's folder; every rank calls it.

        Args:
            folder: of the run.
            log_length: bytes of the metrics file that belong to what is saved.
        """
        position = self.position
        state = {
            "position": {
                "epoch": position.epoch,
                "batch": position.batch,
                "step": position.step,
            },
            "optimizer": self.settings.optimizer.kind,
            "images": self._images(),
            "batches": self._batches(),
            "order": self.sampler.state(position.batch),
            "unreadable": self.unreadable,
            "log_length": log_length,
            "precision": self.precision.precision,
            "products": getattr(self.head, "products", None),
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state(),
        }
        optimizing = {
            f"optimizer.{name}.{key}": value
            for name, parameter in self._optimized().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        tensors = self.tensors() | optimizing
        save_checkpoint(folder, state, tensors, self._rows(tensors), self.world)

    def load(self, checkpoint: Path) -> int:
        """Go on from a checkpoint, whatever number of ranks wrote it.

        Returns:
            bytes of the metrics file that belong to it.

        Raises:
            ValueError: the checkpoint is damaged, or of another model, loss or training set.
        """
        state = read_state(checkpoint)
        images = state.get("images", {})
        if images != self._images():
            raise ValueError(
                f"the training images have changed since the checkpoint, {images.get('count')} "
                f"then, {len(self.images)} now, or are of other identities; restore them, or "
                "start anew"
            )
        stored = stored_tensors(checkpoint)
        tensors = self.tensors()
        self._check_fits(stored, tensors, state["optimizer"])
        for name, parameter in self._optimized().items():
            prefix = f"optimizer.{name}."
            for key in [key for key in stored if key.startswith(prefix)]:
                shape, dtype = stored[key]
                if shape == self._shape(name, parameter):
                    value = torch.zeros_like(parameter, dtype=dtype)
                else:
                    value = torch.zeros(shape, dtype=dtype)
                self.optimizer.state[parameter][key.removeprefix(prefix)] = tensors[key] = value
        load_tensors(checkpoint, tensors, self._rows(tensors), self.world)
        self.position = Position(**state["position"])
        self._take_up_order(state)
        self.unreadable = dict(state["unreadable"])
        # The same numbers again matter more than what is fastest on this machine.
        if self.settings.precision == "auto" and "precision" in state:
            self._set_precision(precision_of(state))
        if self.automatic_products and isinstance(self.head, ChunkedHead):
            # Before it was kept there was float32 alone.
            self.head.products = choose_products(
                state.get("products") or "float32", self.head.weight, 0
            )
        if self.loss_scale is not None and state.get("loss_scale"):
            self.loss_scale.load(state["loss_scale"])
        return state["log_length"]

    def _take_up_order(self, state: Mapping[str, Any]) -> None:
        """Go on within the epoch if its batches are still the same, else from its beginning."""
        former, ours = state.get("batches") or self._batches(), self._batches()
        if former == ours:
            self.sampler.resume(state.get("order", {}))
            return
        epoch, batch = self.position.epoch, self.position.batch
        # The schedule goes by epochs, which now have another number of steps.
        self.position = Position(epoch, 0, epoch * self.steps_per_epoch)
        if batch:
            changed = ", ".join(
                f"training.{name} is {ours[name]} instead of {former[name]}"
                for name in ours
                if ours[name] != former.get(name)
            )
            self.notes.append(
                f"{changed}: epoch {epoch + 1} has other batches now, so it begins anew, and its "
                f"first {batch} steps count twice"
            )

    def _batches(self) -> dict[str, int]:
        """What an epoch's batches hang on beside the images."""
        return {"batch_size": self.settings.batch_size, "seed": self.settings.seed}

    def _check_fits(
        self,
        stored: Mapping[str, tuple[torch.Size, torch.dtype]],
        tensors: Mapping[str, Tensor],
        optimizer: str,
    ) -> None:
        """Raise where a checkpoint is of another configuration."""
        expected = {
            name: (self._shape(name, value), value.dtype) for name, value in tensors.items()
        }
        found = {name: value for name, value in stored.items() if not name.startswith("optimizer.")}
        faults = [f"it lacks {name}" for name in expected if name not in found]
        faults += [f"it holds {name}" for name in found if name not in expected]
        faults += [
            f"{name} is {_told(found[name])}, not {_told(value)}"
            for name, value in expected.items()
            if name in found and found[name] != value
        ]
        if optimizer != self.settings.optimizer.kind:
            faults.append(f"its optimiser is {optimizer}, not {self.settings.optimizer.kind}")
        if faults:
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise ValueError(
                f"the checkpoint does not fit this configuration: {'; '.join(faults[:3])}{more}; "
                "resume with the configuration stored in the run, or start anew elsewhere"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All that is learned or counted, by part and name: what a checkpoint holds of modules."""
        return {
            f"{part}.{name}": value
            for part, module in self._modules().items()
            for name, value in module.state_dict().items()
        }

    def _rows(self, names: Mapping[str, Tensor]) -> dict[str, int]:
        """Which of these tensors each rank has its own rows of, and all ranks' rows."""
        if self.head.world.size == 1:
            return {}
        rows = {f"head.{name}": count for name, count in self.head.split_entries().items()}
        found = {name: rows[name] for name in names if name in rows}
        for parameter in ("weight", "bias"):
            prefix = f"optimizer.head.{parameter}."
            for name, value in names.items():
                if name.startswith(prefix) and value.ndim:
                    found[name] = rows[f"head.{parameter}"]
        return found

    def _shape(self, name: str, value: Tensor) -> torch.Size:
        """Over all ranks."""
        rows = self._rows({name: value})
        return torch.Size((rows[name], *value.shape[1:])) if name in rows else value.shape

    def _optimized(self) -> dict[str, nn.Parameter]:
        """The optimiser's parameters by part and name."""
        return {
            f"{part}.{name}": parameter
            for part, module in (("backbone", self.network), ("head", self.head))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def average_buffers(self) -> Iterator[Tensor]:
        """The network's running averages, which ranks gather from different images."""
        return (buffer for buffer in self.network.buffers() if buffer.is_floating_point())

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


def precision_of(state: Mapping[str, Any]) -> PrecisionChoice:
    """What a checkpoint's training computed in.

    Raises:
        ValueError: the state names no precision.
    """
    if state["precision"] not in get_args(Precision):
        raise ValueError(
            f"the checkpoint's precision {state['precision']!r} is none; it is damaged"
        )
    return PrecisionChoice(state["precision"], "as the run began")


def _told(what: tuple[torch.Size, torch.dtype]) -> str:
    shape, dtype = what
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
