"""A slowly following copy of a network, batch-norm buffers included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from margrave.distributed import whole


class MomentumEncoder(nn.Module):
    """An exponential moving average of a network's parameters and floating-point buffers.

    average ← momentum·average + (1 − momentum)·network, after every optimiser step. It answers in
    evaluation mode and without gradient. Serves KappaFace's estimator and weight averaging alike.

    Source: KappaFace, arXiv 2201.07394, section 3.3 (momentum 0.9). The authors' code averages the
    parameters alone, so its batch norms keep their initial statistics for ever.

    Args:
        network: the network to follow.
        momentum: weight of the old average, in [0, 1).
        warm_up: in update k use (1 + k)/(10 + k) while that is less, so that a slow average does
            not keep its random beginning.

    >>> encoder = MomentumEncoder(nn.Linear(2, 1, bias=False), momentum=0.5)
    >>> follow = nn.Linear(2, 1, bias=False)
    >>> before = encoder.average.weight.clone()
    >>> encoder.follow(follow)
    >>> torch.allclose(encoder.average.weight, (before + follow.weight) / 2)
    True
    """

    updates: Tensor

    def __init__(self, network: nn.Module, momentum: float = 0.9, *, warm_up: bool = False) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum} must be in [0, 1)")
        self.momentum = momentum
        self.warm_up = warm_up
        # Beside the network's tensors, or each of them would wait for a copy of it.
        device = next((parameter.device for parameter in network.parameters()), None)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
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
        self.updates += 1
        momentum = torch.full_like(self.updates, self.momentum, dtype=torch.float32)
        if self.warm_up:
            momentum = torch.minimum(momentum, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.state_dict().items():
            now = whole(current[name])
            if average.is_floating_point():
                average.lerp_(now.to(average), (1 - momentum).to(average))
            else:
                average.copy_(now)
