"""The interface of backbones, and helper functions that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, get_args

import torch
from torch import Tensor, nn

from margrave.registry import Registry, suggest


class Backbone(Protocol):
    """A network that maps face images to features.

    Attributes:
        embedding_size: D, the number of features.
        image_size: height and width of the input images, in pixels.
    """

    embedding_size: int
    image_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) RGB in [-1, 1] -> (B, D) unnormalized features."""
        ...


BACKBONES: Registry[Callable[..., nn.Module]] = Registry("backbone")


def check_images(images: Tensor, image_size: int) -> None:
    """Check that a batch is floating-point with shape (B, 3, image_size, image_size).

    Raises:
        ValueError: the shape or the dtype is wrong.

    >>> check_images(torch.zeros(1, 3, 64, 64), image_size=112)
    Traceback (most recent call last):
        ...
    ValueError: images have shape (1, 3, 64, 64), but this backbone needs (B, 3, 112, 112)
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, image_size, image_size):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, "
            f"but this backbone needs (B, 3, {image_size}, {image_size})"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images have dtype {images.dtype}; convert the pixels to floats in [-1, 1]"
        )


def check_at_least(minimum: int, **settings: int | Sequence[int]) -> None:
    """Check that each setting, or each of its values if it is a sequence, is at least `minimum`.

    >>> check_at_least(1, embedding_size=0)
    Traceback (most recent call last):
        ...
    ValueError: embedding_size = 0 must be at least 1
    """
    for name, value in settings.items():
        if min((value,) if isinstance(value, int) else value) < minimum:
            raise ValueError(f"{name} = {value} must be at least {minimum}")


def check_choices(choices: Mapping[str, Any], **settings: object) -> None:
    """Check that each setting has one of its allowed values.

    `choices` maps the name of a setting to the ``Literal`` type of its allowed values.

    >>> from typing import Literal
    >>> check_choices({"block": Literal["basic", "bottleneck"]}, block="basc")
    Traceback (most recent call last):
        ...
    ValueError: block = 'basc'; did you mean 'basic'? choices: basic, bottleneck
    """
    for name, value in settings.items():
        allowed = get_args(choices[name])
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}; {suggest(str(value), list(map(str, allowed)))}")


def check_probability(**settings: float) -> None:
    """Check that settings are in [0, 1).

    >>> check_probability(dropout=1.0)
    Traceback (most recent call last):
        ...
    ValueError: dropout = 1.0 must be in [0, 1)
    """
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value} must be in [0, 1)")


def halved_size(size: int, times: int) -> int:
    """Side of a square map of side `size` after `times` stride-2 convolutions, each rounding up.

    >>> halved_size(112, times=4)
    7
    """
    return math.ceil(size / 2**times)


def apply_in_weight_precision(inputs: Tensor, *layers: nn.Module) -> Tensor:
    """The outputs of a network's last layers, computed in the weights' precision despite autocast.

    These layers determine the feature norm, which half precision would distort. Some margins use
    the norm as a measure of image quality.
    """
    device = inputs.device.type
    has_autocast = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        outputs = inputs.to(next(layers[0].parameters()).dtype)
        for layer in layers:
            outputs = layer(outputs)
    return outputs


def initialize_fan_out(module: nn.Module) -> None:
    """Initialize convolutions and linear layers from He's normal distribution in fan-out mode.

    The variance is 2 / fan-out (He et al. 2015, arXiv:1502.01852); biases are 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
