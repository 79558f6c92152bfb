"""What every backbone keeps to, and the checks they share."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from margrave.registry import Registry


class Backbone(Protocol):
    """A network from face images to features.

    Attributes:
        embedding_size: D, the number of features.
        image_size: height and width of the images it takes, in pixels.
    """

    embedding_size: int
    image_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, image_size, image_size) RGB in [-1, 1] -> (B, D) unnormalised features."""
        ...


BACKBONES: Registry[Callable[..., nn.Module]] = Registry("backbone")


def check_images(images: Tensor, image_size: int) -> None:
    """Refuse a batch that is not (B, 3, image_size, image_size) floating point.

    Raises:
        ValueError: naming the shape or type found and the one expected.

    >>> check_images(torch.zeros(1, 3, 64, 64), image_size=112)
    Traceback (most recent call last):
        ...
    ValueError: images have shape (1, 3, 64, 64), this backbone takes (B, 3, 112, 112)
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, image_size, image_size):
        raise ValueError(
            f"images have shape {tuple(images.shape)}, "
            f"this backbone takes (B, 3, {image_size}, {image_size})"
        )
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}; scale the pixels to [-1, 1] as floats first")


def check_at_least(minimum: int, **settings: int | tuple[int, ...]) -> None:
    """Refuse settings below a minimum.

    >>> check_at_least(1, embedding_size=0)
    Traceback (most recent call last):
        ...
    ValueError: embedding_size = 0, must be at least 1
    """
    for name, value in settings.items():
        if min(value if isinstance(value, tuple) else (value,)) < minimum:
            raise ValueError(f"{name} = {value}, must be at least {minimum}")


def check_share(**settings: float) -> None:
    """Refuse probabilities outside [0, 1).

    >>> check_share(dropout=1.0)
    Traceback (most recent call last):
        ...
    ValueError: dropout = 1.0, must lie in [0, 1)
    """
    for name, value in settings.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} = {value}, must lie in [0, 1)")


def halved(size: int, times: int) -> int:
    """Side of a square map after as many stride-2 convolutions, each of which rounds up.

    >>> halved(112, times=4)
    7
    """
    return math.ceil(size / 2**times)


def in_weight_precision(inputs: Tensor, *layers: nn.Module) -> Tensor:
    """Run the last layers in the precision of their own weights, even under autocast.

    They decide the feature norm, which margins read as image quality: half precision would blur it.
    """
    device = inputs.device.type
    has_autocast = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        outputs = inputs.to(next(layers[0].parameters()).dtype)
        for layer in layers:
            outputs = layer(outputs)
    return outputs


def initialise_by_fan_out(module: nn.Module) -> None:
    """Draw every convolution and linear layer from He's normal law for the outgoing paths.

    Variance 2 / fan out (He et al. 2015, arXiv:1502.01852); biases start at 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
