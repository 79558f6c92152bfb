"""What a network computes in, chosen for the machine it runs on, and the scaling of float16's loss.

Losses, statistics and heads compute in float32 (or float64) whatever the network does.
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
"""The first CUDA capability with float16 in its matrix units."""
LONGEST_STEP = 0.3
"""Seconds that two images may take for a network to be measured."""
MEASURED_SECONDS = 0.05
"""What one measured step should take at least, so that its batch is worth measuring."""


@dataclass(frozen=True)
class PrecisionChoice:
    """A precision and why it was chosen.

    Attributes:
        precision: of the network.
        reason: half a sentence for the run's first lines.
    """

    precision: Precision
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the images that the network is given, and of its weights."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """The context that the network computes in."""
        if self.precision not in LOW_PRECISIONS:
            return nullcontext()
        return torch.autocast(device_type, LOW_PRECISIONS[self.precision])


def choose_precision(
    wanted: Precision | Literal["auto"],
    network: nn.Module,
    image_size: int,
    batch_size: int,
    device: torch.device,
) -> PrecisionChoice:
    """The precision that was asked for, or with ``auto`` the fastest that trains as well.

    A CUDA device answers by its generation: bfloat16 from Ampere on, float16 with a scaled loss on
    Volta and Turing, else float32. On a processor steps of the network itself are measured, for
    about a second, after a product of matrices has shown that bfloat16 is not emulated; a network
    too large for that is all products. Other devices take float32.

    Args:
        wanted: from the settings.
        network: on the host, in the memory layout that it trains in; it is left as it is.
        image_size: of its images.
        batch_size: images of a micro-batch.
        device: that it trains on.

    >>> choose_precision("float32", nn.Identity(), 8, 4, torch.device("cpu"))
    PrecisionChoice(precision='float32', reason='as configured')
    """
    if wanted != "auto":
        return PrecisionChoice(wanted, "as configured")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        capability = torch.cuda.get_device_capability(device)
        if capability >= AMPERE:
            return PrecisionChoice("bfloat16", f"native on {name}")
        if capability >= VOLTA:
            return PrecisionChoice("float16", f"{name} has no bfloat16; the loss is scaled")
        return PrecisionChoice("float32", f"{name} computes nothing faster")
    if device.type != "cpu":
        return PrecisionChoice("float32", f"nothing lower is known to be faster on {device.type}")
    if not has_native_bfloat16("cpu"):
        return PrecisionChoice("float32", "this processor has no bfloat16 of its own")
    try:
        faster = _step_is_faster_in_bfloat16(network, image_size, batch_size)
    # Custom networks can do anything, and what they do in float32 is not known yet either.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return PrecisionChoice("float32", f"this network does not run in bfloat16: {reason}")
    if faster:
        return PrecisionChoice("bfloat16", "measured faster than float32 in steps of this network")
    return PrecisionChoice("float32", "measured no slower than bfloat16 in steps of this network")


def _step_is_faster_in_bfloat16(network: nn.Module, image_size: int, batch_size: int) -> bool:
    # Batch norm's averages move and gradients appear: not in the network itself.
    trial = copy.deepcopy(network).train()

    def step(images: torch.Tensor, low: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            output = trial(images)
        if output.requires_grad:
            output.float().sum().backward()

    def images_of(count: int) -> torch.Tensor:
        images = torch.randn(count, 3, image_size, image_size)
        weights = next((p for p in trial.parameters() if p.ndim == 4), images)
        last = weights.is_contiguous(memory_format=torch.channels_last)
        return images.to(memory_format=torch.channels_last if last else torch.contiguous_format)

    with _draws_restored():
        images = images_of(2)
        step(images, low=True)
        step(images, low=False)
        started = time.perf_counter()
        step(images, low=False)
        seconds = time.perf_counter() - started
        if seconds > LONGEST_STEP:
            return True
        images = images_of(2 * max(1, min(batch_size // 2, int(MEASURED_SECONDS / seconds))))
        return is_faster(lambda: step(images, True), lambda: step(images, False), rounds=2)


@contextmanager
def _draws_restored() -> Iterator[None]:
    """Let no draw of what happens inside be missed by what follows."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class LossScale:
    """The factor that keeps float16 gradients from vanishing, lowered when they overflow.

    It halves after an overflow, whose step is left out, and doubles after `growth_steps` steps
    without one.

    Args:
        scale: to begin with.
        growth_steps: steps without overflow before it doubles.

    Source: Micikevicius et al., Mixed Precision Training, arXiv 1710.03740, section 3.2; the
    numbers are torch.amp.GradScaler's, which would make the host wait for the device once more.

    >>> scale = LossScale(scale=4.0)
    >>> scale.overflowed()
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
        """Whether gradients overflow even unscaled, so that scaling cannot be what is wrong."""
        return self.scale < 1

    def overflowed(self) -> None:
        """A step was left out."""
        self.scale /= 2
        self.good_steps = 0
        self.skipped_steps += 1

    def succeeded(self) -> None:
        """A step was made."""
        self.good_steps += 1
        if self.good_steps == self.growth_steps:
            self.scale = min(2 * self.scale, 2.0**24)
            self.good_steps = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        names = ("scale", "good_steps", "skipped_steps")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.scale = float(state["scale"])
        self.good_steps = int(state["good_steps"])
        self.skipped_steps = int(state["skipped_steps"])
