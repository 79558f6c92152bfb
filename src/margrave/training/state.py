"""The state of a training run, and how checkpoints store it."""

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

from margrave.backbones import MomentumEncoder
from margrave.data import Batch, EpochSampler, TrainingImages
from margrave.distributed import World, current_world, full_tensor
from margrave.distributed.tensor_store import load_tensors, stored_tensors
from margrave.heads import Head
from margrave.heads.products import choose_products
from margrave.training.adaptation import plain_measurement, tensor_measurement
from margrave.training.checkpoint import read_state, save_checkpoint
from margrave.training.precision import LossScale, Precision, PrecisionChoice
from margrave.training.settings import TrainingSettings


@dataclass(frozen=True)
class Position:
    """How far a training run has come.

    Attributes:
        epoch: the current epoch, from 0.
        batch: the next batch within the epoch, from 0.
        step: number of steps done, over all epochs.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class TrainingState:
    """Everything that a training step reads or changes.

    Attributes:
        settings: the training settings.
        fabric: Lightning Fabric, which places the network on the device and wraps it.
        precision: the network's precision.
        images: the training set.
        sampler: decides which images each batch contains.
        loader: loads the sampler's batches.
        network: the backbone, not wrapped.
        full_network: with FSDP, a copy into which the sharded parameters are gathered; else None.
        backbone: `network` wrapped by Fabric, for the forward pass.
        head: class centers, loss and statistics.
        optimizer: updates the network and the head.
        average: the averaged weights, or None.
        encoder: KappaFace's momentum encoder, or None.
        position: the next batch, and the number of steps done.
        unreadable: why each unreadable image cannot be read, by image name.
        loss_scale: the float16 loss scaler, or None.
        automatic_products: whether the precision of the head's products was chosen automatically.
        unused_parameters: names of the network's parameters that get no gradient.
        notes: messages to report after resuming.
        adaptation: the result of `measure_adaptation` until it is logged; empty otherwise.
    """

    settings: TrainingSettings
    fabric: Fabric
    precision: PrecisionChoice
    images: TrainingImages
    sampler: EpochSampler
    loader: DataLoader[Batch]
    network: nn.Module
    full_network: nn.Module | None
    backbone: _FabricModule
    head: Head
    optimizer: torch.optim.Optimizer
    average: MomentumEncoder | None
    encoder: MomentumEncoder | None
    loss_scale: LossScale | None = None
    automatic_products: bool = False
    unused_parameters: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    position: Position = Position()
    unreadable: dict[str, str] = field(default_factory=dict)
    adaptation: dict[str, Tensor] = field(default_factory=dict)

    def gather_model(self) -> nn.Module:
        """The network to evaluate and save: the averaged one if there is one.

        Every rank must call it, because parameters that are sharded over ranks are gathered.
        """
        if self.average is not None:
            return self.average.average
        if self.full_network is None:
            return self.network
        state = {name: full_tensor(value) for name, value in self.network.state_dict().items()}
        self.full_network.load_state_dict(state)
        return self.full_network.to(self.fabric.device)

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
        """Optimizer steps in an epoch."""
        return self.sampler.batches_per_epoch

    def epochs_after(self, steps: int = 0) -> float:
        """Number of epochs done, as a fraction, after `steps` more steps.

        It does not depend on ``position.step``, because epochs before a resumption may have had a
        different number of steps.
        """
        position = self.position
        batches = position.epoch * self.steps_per_epoch + position.batch + steps
        return batches / self.steps_per_epoch

    def save(self, folder: Path, log_length: int) -> None:
        """Write a checkpoint into the run's folder; every rank must call it.

        Args:
            folder: the run's folder.
            log_length: current size of the metrics file, in bytes.
        """
        position = self.position
        state = {
            "position": {
                "epoch": position.epoch,
                "batch": position.batch,
                "step": position.step,
            },
            "optimizer": self.settings.optimizer.kind,
            "images": self._image_digest(),
            "batches": self._batch_settings(),
            "order": self.sampler.state(position.batch),
            "unreadable": self.unreadable,
            "log_length": log_length,
            "precision": self.precision.precision,
            "products": self.head.products,
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state(),
            # Only a checkpoint between an epoch's last step and its end holds a measurement.
            "adaptation": plain_measurement(self.adaptation),
        }
        optimizer_tensors = {
            f"optimizer.{name}.{key}": value
            for name, parameter in self._optimized_parameters().items()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        tensors = self.tensors() | optimizer_tensors
        save_checkpoint(folder, state, tensors, self._sharded_rows(tensors), self.world)

    def load(self, checkpoint: Path) -> int:
        """Resume from a checkpoint, written by any number of ranks.

        Returns:
            size of the metrics file at the checkpoint, in bytes.

        Raises:
            ValueError: the checkpoint is damaged or belongs to another model, loss or training set.
        """
        state = read_state(checkpoint)
        images = state.get("images", {})
        if images != self._image_digest():
            raise ValueError(
                f"the training images or their identities have changed since the checkpoint "
                f"({images.get('count')} images then, {len(self.images)} now); restore them, or "
                "start a new run"
            )
        stored = stored_tensors(checkpoint)
        tensors = self.tensors()
        self._check_compatible(stored, tensors, state["optimizer"])
        for name, parameter in self._optimized_parameters().items():
            prefix = f"optimizer.{name}."
            for key in [key for key in stored if key.startswith(prefix)]:
                shape, dtype = stored[key]
                # A stored moment has its parameter's shape over all ranks; AdamW's step count is a
                # scalar.
                if shape == self._full_shape(name, parameter):
                    value = torch.zeros_like(parameter, dtype=dtype)
                else:
                    value = torch.zeros(shape, dtype=dtype)
                self.optimizer.state[parameter][key.removeprefix(prefix)] = tensors[key] = value
        load_tensors(checkpoint, tensors, self._sharded_rows(tensors), self.world)
        self.position = Position(**state["position"])
        self._restore_sampler(state)
        self.unreadable = dict(state["unreadable"])
        # Reproducing the run's numbers matters more than this machine's fastest precision.
        if self.settings.precision == "auto" and "precision" in state:
            self._set_precision(checkpoint_precision(state))
        if self.automatic_products:
            # Checkpoints without "products" were written when float32 was the only choice.
            # The count matters only for "auto"; a checkpoint has the resolved precision.
            self.head.products = choose_products(
                state.get("products") or "float32", self.head.weight, cosine_count=0
            )
        self.adaptation = tensor_measurement(state.get("adaptation") or {})
        if self.loss_scale is not None and state.get("loss_scale"):
            self.loss_scale.load(state["loss_scale"])
        return state["log_length"]

    def _restore_sampler(self, state: Mapping[str, Any]) -> None:
        """Continue within the epoch if its batches are unchanged; otherwise restart the epoch."""
        current = self._batch_settings()
        # A checkpoint without these settings counts as unchanged.
        saved = state.get("batches") or current
        if saved == current:
            self.sampler.resume(state.get("order", {}))
            return
        epoch, batch = self.position.epoch, self.position.batch
        self.position = Position(epoch, 0, self.position.step)
        if batch:
            changed = ", ".join(
                f"training.{name} is {current[name]} instead of {saved.get(name, 'unknown')}"
                for name in current
                if current[name] != saved.get(name)
            )
            self.notes.append(
                f"{changed}: the batches of epoch {epoch + 1} have changed, so it starts again"
                f"; its {batch} finished steps stay in the step count"
            )

    def _batch_settings(self) -> dict[str, int]:
        """The settings that an epoch's batches depend on."""
        return {"batch_size": self.settings.batch_size, "seed": self.settings.seed}

    def _check_compatible(
        self,
        stored: Mapping[str, tuple[torch.Size, torch.dtype]],
        tensors: Mapping[str, Tensor],
        optimizer: str,
    ) -> None:
        """Raise a ValueError if a checkpoint belongs to another configuration."""
        expected = {
            name: (self._full_shape(name, value), value.dtype) for name, value in tensors.items()
        }
        saved = {name: value for name, value in stored.items() if not name.startswith("optimizer.")}
        problems = [f"it lacks {name}" for name in expected if name not in saved]
        problems += [f"it has an unexpected {name}" for name in saved if name not in expected]
        problems += [
            f"{name} is {_describe(saved[name])}, not {_describe(value)}"
            for name, value in expected.items()
            if name in saved and saved[name] != value
        ]
        if optimizer != self.settings.optimizer.kind:
            problems.append(f"its optimizer is {optimizer}, not {self.settings.optimizer.kind}")
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"the checkpoint does not fit this configuration: {'; '.join(problems[:3])}{more}; "
                "resume with the configuration stored in the run, or start a new run in another "
                "folder"
            )

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by their names in a checkpoint, such as ``head.weight``."""
        return {
            f"{module_name}.{name}": value
            for module_name, module in self._modules().items()
            for name, value in module.state_dict().items()
        }

    def _sharded_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of rows over all ranks of each tensor with sharded rows, by its name."""
        if self.head.world.size == 1:
            return {}
        head_rows = {f"head.{name}": count for name, count in self.head.sharded_entries().items()}
        sharded_rows = {name: head_rows[name] for name in tensors if name in head_rows}
        for parameter in ("weight", "bias"):
            prefix = f"optimizer.head.{parameter}."
            for name, value in tensors.items():
                # AdamW's step count is a scalar and has no rows.
                if name.startswith(prefix) and value.ndim:
                    sharded_rows[name] = head_rows[f"head.{parameter}"]
        return sharded_rows

    def _full_shape(self, name: str, value: Tensor) -> torch.Size:
        """The shape of a tensor over all ranks."""
        rows = self._sharded_rows({name: value})
        return torch.Size((rows[name], *value.shape[1:])) if name in rows else value.shape

    def _optimized_parameters(self) -> dict[str, nn.Parameter]:
        """The optimizer's parameters by name, such as ``head.weight``."""
        return {
            f"{module_name}.{name}": parameter
            for module_name, module in (("backbone", self.network), ("head", self.head))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def running_stats(self) -> Iterator[Tensor]:
        """The network's running statistics, which each rank updates from its own images."""
        return (buffer for buffer in self.network.buffers() if buffer.is_floating_point())

    def _image_digest(self) -> dict[str, Any]:
        """The number of images and a digest of their labels, which identify the training set."""
        labels = np.ascontiguousarray(self.images.images.labels, np.int64)
        return {"count": len(labels), "labels": hashlib.sha256(labels.tobytes()).hexdigest()}

    def _modules(self) -> dict[str, nn.Module]:
        modules = {
            "backbone": self.network,
            "head": self.head,
            "average": self.average,
            "encoder": self.encoder,
        }
        return {name: module for name, module in modules.items() if module is not None}


def checkpoint_precision(state: Mapping[str, Any]) -> PrecisionChoice:
    """The network's precision in the run that wrote a checkpoint.

    Raises:
        ValueError: the state's precision is unknown.
    """
    if state["precision"] not in get_args(Precision):
        raise ValueError(
            f"the checkpoint is damaged: unknown precision {state['precision']!r}, must be one of "
            f"{', '.join(get_args(Precision))}"
        )
    return PrecisionChoice(state["precision"], "as in the interrupted run")


def _describe(shape_and_dtype: tuple[torch.Size, torch.dtype]) -> str:
    shape, dtype = shape_and_dtype
    return f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
