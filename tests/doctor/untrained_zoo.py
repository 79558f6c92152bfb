"""Networks as they are drawn, as images went through them, and as training leaves them."""

from __future__ import annotations

import torch
from torch import nn


def touched(network: nn.Module, size: int) -> nn.Module:
    """Images went through in training mode, and nothing was learned."""
    network.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.rand(4, 3, size, size, generator=generator) - 1)
    return network.eval()


def as_if_trained(network: nn.Module) -> nn.Module:
    """Each weight gets an outer product, as gradients add, and norms move."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() < 2:
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
                continue
            rows = parameter.reshape(len(parameter), -1)
            one = torch.randn(rows.shape[0], 1, generator=generator)
            other = torch.randn(1, rows.shape[1], generator=generator)
            parameter += (rows.std() * one * other).reshape(parameter.shape)
    return network
