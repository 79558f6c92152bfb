"""A slowly following copy of a network, batch-norm buffers included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MomentumEncoder(nn.Module):
    """An exponential moving average of a network's parameters and floating-point buffers.

    average ← momentum·average + (1 − momentum)·network, after every optimiser step. It answers in
    evaluation mode and without gradient. Serves KappaFace's estimator and weight averaging alike.

    Source: KappaFace, arXiv 2201.07394, section 3.3 (momentum 0.9). The authors' code averages the
    parameters alone, so its batch norms keep their initial statistics for ever.

    Args:
        network: the network to follow.
        momentum: weight of the old average, in [0, 1).

    >>> encoder = MomentumEncoder(nn.Linear(2, 1, bias=False), momentum=0.5)
    >>> follow = nn.Linear(2, 1, bias=False)
    >>> before = encoder.average.weight.clone()
    >>> encoder.follow(follow)
    >>> torch.allclose(encoder.average.weight, (before + follow.weight) / 2)
    True
    """

    def __init__(self, network: nn.Module, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum} must be in [0, 1)")
        self.momentum = momentum
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Stays in evaluation mode whatever its owner does."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.average(images)

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move a step towards `network`; counters are copied."""
        current = network.state_dict()
        for name, average in self.average.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name].to(average), 1 - self.momentum)
            else:
                average.copy_(current[name])
