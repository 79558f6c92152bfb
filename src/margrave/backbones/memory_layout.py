"""The memory layout in which a network's convolutions are both safe and fast."""

from __future__ import annotations

import torch
from torch import nn

# oneDNN, to which torch leaves convolutions on a CPU, corrupts memory in the backward pass of some
# float32 convolutions in channels-last layout on processors with AVX2 but not AVX-512 (torch 2.13.0
# and 2.14.1): kernel 1 x 1, any stride above 1 that divides the input, no padding, one group, 1 to
# 7 input channels. Where weights are contiguous but images are not it does so too. Kernels with a
# side of 1, groups, padding and other types are avoided as well: a margin for what was not tried.
FEWEST_CHANNELS = 8


def channels_last_is_safe(network: nn.Module) -> bool:
    """Whether none of the network's weights belong to a convolution that oneDNN gets wrong.

    Weights of custom layers, whose stride is unknown, count as strided.

    >>> channels_last_is_safe(nn.Conv2d(4, 8, kernel_size=1, stride=2))
    False
    >>> channels_last_is_safe(nn.Conv2d(3, 8, kernel_size=3, stride=2))
    True
    """
    for module in network.modules():
        known = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        if known and max(module.stride) == 1:
            continue
        for weight in module.parameters(recurse=False):
            # (output channels, input channels per group, height, width) of the kernel.
            if weight.ndim == 4 and weight.shape[1] < FEWEST_CHANNELS and 1 in weight.shape[2:]:
                return False
    return True


def memory_format(network: nn.Module, channels_last: bool = True) -> torch.memory_format:
    """The layout for the network's weights and for its images alike.

    Args:
        network: whose convolutions decide.
        channels_last: whether channels last is wanted where it is safe.
    """
    wanted = channels_last and channels_last_is_safe(network)
    return torch.channels_last if wanted else torch.contiguous_format
