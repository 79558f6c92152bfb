"""Chooses the network's precision for the machine, and scales the loss for float16.

Losses, statistics and heads always compute in float32 (or float64).
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from margrave.hardware import AMPERE, has_native_bfloat16, is_faster

Precision = Literal["float32", "bfloat16", "float16", "float64"]
LOW_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
VOLTA = (7, 0)
"""The first CUDA compute capability with float16 tensor cores."""
MAX_TRIAL_SECONDS = 0.3
"""If a float32 step on two images takes longer, bfloat16 is chosen without a comparison."""
MIN_MEASURED_SECONDS = 0.05
"""The approximate time of a float32 step in the comparison; sets the number of images in it."""


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision and why it was chosen.

    Attributes:
        precision: the network's precision.
        reason: a short phrase, shown when the run starts.
    """

    precision: Precision
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's weights and of its input images."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """The autocast context for the forward pass; it has no effect for float32 and float64."""
        if self.precision not in LOW_PRECISIONS:
            return nullcontext()
        return torch.autocast(device_type, LOW_PRECISIONS[self.precision])


def choose_precision(
    configured: Precision | Literal["auto"],
    network: nn.Module,
    image_size: int,
    batch_size: int,
    device: torch.device,
) -> PrecisionChoice:
    """Return the configured precision, or with ``auto`` the fastest that trains equally well.

    On CUDA, the GPU's generation decides: bfloat16 from Ampere on, float16 with a scaled loss on
    Volta and Turing, else float32. On a CPU with native bfloat16, steps of the network are timed
    for about a second; if the network is too large for that, matrix products dominate and bfloat16
    is chosen without timing. Other devices use float32.

    Args:
        configured: the precision in the settings.
        network: the network on the host, in its memory layout for training; stays unchanged.
        image_size: image side length in pixels.
        batch_size: images per micro-batch of one process.
        device: the device that the network will train on.

    >>> choose_precision("float32", nn.Identity(), 8, 4, torch.device("cpu"))
    PrecisionChoice(precision='float32', reason='as configured')
    """
    if configured != "auto":
        return PrecisionChoice(configured, "as configured")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        capability = torch.cuda.get_device_capability(device)
        if capability >= AMPERE:
            return PrecisionChoice("bfloat16", f"native on {name}")
        if capability >= VOLTA:
            return PrecisionChoice("float16", f"{name} has no bfloat16; the loss is scaled")
        return PrecisionChoice("float32", f"{name} has no faster precision")
    if device.type != "cpu":
        return PrecisionChoice("float32", f"no faster precision is known for {device.type}")
    if not has_native_bfloat16("cpu"):
        return PrecisionChoice("float32", "this CPU has no native bfloat16")
    try:
        faster = _step_is_faster_in_bfloat16(network, image_size, batch_size)
    # A custom network can raise any error. If it fails in float32 too, training will report that.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return PrecisionChoice("float32", f"this network does not run in bfloat16: {reason}")
    if faster:
        return PrecisionChoice("bfloat16", "measured faster than float32 in steps of this network")
    return PrecisionChoice(
        "float32", "bfloat16 measured not clearly faster in steps of this network"
    )


def _step_is_faster_in_bfloat16(network: nn.Module, image_size: int, batch_size: int) -> bool:
    """Whether bfloat16 is faster; True without a comparison if the network is large."""
    # A copy, because the steps change batch norm's running statistics and add gradients.
    network_copy = copy.deepcopy(network).train()

    def step(images: torch.Tensor, bfloat16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = network_copy(images)
        if output.requires_grad:
            output.float().sum().backward()

    def random_images(count: int) -> torch.Tensor:
        images = torch.randn(count, 3, image_size, image_size)
        # The images get the memory layout of the network's convolution kernels, if it has any.
        reference = next((p for p in network_copy.parameters() if p.ndim == 4), images)
        channels_last = reference.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return images.to(memory_format=layout)

    with _random_state_restored():
        images = random_images(2)
        # Warm-up. The bfloat16 step also shows whether the network supports bfloat16.
        step(images, bfloat16=True)
        step(images, bfloat16=False)
        started = time.perf_counter()
        step(images, bfloat16=False)
        seconds_per_pair = time.perf_counter() - started
        if seconds_per_pair > MAX_TRIAL_SECONDS:
            return True
        pairs = max(1, min(batch_size // 2, int(MIN_MEASURED_SECONDS / seconds_per_pair)))
        images = random_images(2 * pairs)
        return is_faster(lambda: step(images, True), lambda: step(images, False), rounds=2)


@contextmanager
def _random_state_restored() -> Iterator[None]:
    """Context that restores the random states of torch, NumPy and Python at its end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class LossScale:
    """A factor on the loss that keeps float16 gradients from underflowing.

    After an overflow, the step is skipped and the scale is halved. After `growth_steps` steps
    without an overflow, the scale is doubled, up to 2²⁴.

    Args:
        scale: the initial scale.
        growth_steps: consecutive steps without overflow before the scale doubles.

    Source: Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, section 3.2. The
    defaults are those of torch.amp.GradScaler, which is not used because it would make the host
    wait for the device once more per step.

    >>> scale = LossScale(scale=4.0)
    >>> scale.record_overflow()
    >>> scale.scale, scale.skipped_steps
    (2.0, 1)
    """

    def __init__(self, scale: float = 2.0**16, growth_steps: int = 2000) -> None:
        self.scale = scale
        self.growth_steps = growth_steps
        self.good_steps = 0
        self.skipped_steps = 0

    @property
    def exhausted(self) -> bool:
        """Whether gradients overflowed even at scale 1, where halving the scale cannot help."""
        return self.scale < 1

    def record_overflow(self) -> None:
        """Record a step that overflowed and was skipped."""
        self.scale /= 2
        self.good_steps = 0
        self.skipped_steps += 1

    def record_success(self) -> None:
        """Record a step without overflow."""
        self.good_steps += 1
        if self.good_steps == self.growth_steps:
            self.scale = min(2 * self.scale, 2.0**24)
            self.good_steps = 0

    def state(self) -> dict[str, Any]:
        """The values to store in a checkpoint."""
        names = ("scale", "good_steps", "skipped_steps")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the values from a checkpoint."""
        self.scale = float(state["scale"])
        self.good_steps = int(state["good_steps"])
        self.skipped_steps = int(state["skipped_steps"])
