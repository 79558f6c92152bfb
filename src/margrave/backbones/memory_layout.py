"""Choose a memory layout that is safe and fast for a network's convolutions."""

from __future__ import annotations

import torch
from torch import nn

# torch uses oneDNN for convolutions on CPUs. On CPUs with AVX2 but without AVX-512, oneDNN corrupts
# memory in the backward pass of some channels-last float32 convolutions (torch 2.13.0 and 2.14.1):
# those with 1 x 1 kernels, a stride above 1 that divides the input's size, no padding, one group
# and 1 to 7 input channels. This happens even if only the images are channels-last. To be safe, the
# check below covers any number of groups, any padding, dtype and input size, and all kernels with a
# side of 1.
MIN_SAFE_CHANNELS = 8
"""Minimum number of input channels per group at which strided convolutions avoid the bug above."""


def channels_last_is_safe(network: nn.Module) -> bool:
    """Whether channels-last avoids the oneDNN bug described at `MIN_SAFE_CHANNELS`.

    Layers other than 2D convolutions are treated as strided, because their stride is unknown.

    >>> channels_last_is_safe(nn.Conv2d(4, 8, kernel_size=1, stride=2))
    False
    >>> channels_last_is_safe(nn.Conv2d(3, 8, kernel_size=3, stride=2))
    True
    """
    for module in network.modules():
        has_known_stride = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        if has_known_stride and max(module.stride) == 1:
            continue
        for weight in module.parameters(recurse=False):
            # Kernel weights are (output channels, input channels per group, height, width).
            if weight.ndim == 4 and weight.shape[1] < MIN_SAFE_CHANNELS and 1 in weight.shape[2:]:
                return False
    return True


def memory_format(network: nn.Module, channels_last: bool = True) -> torch.memory_format:
    """Choose the memory layout of a network's weights and input images.

    Args:
        network: the network.
        channels_last: whether to choose channels-last if it is safe for this network.
    """
    use_channels_last = channels_last and channels_last_is_safe(network)
    return torch.channels_last if use_channels_last else torch.contiguous_format
