"""An exponential moving average of a network, including its batch norm statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from margrave.distributed import full_tensor


class MomentumEncoder(nn.Module):
    """An exponential moving average of a network's parameters and floating-point buffers.

    Call `update` after every optimizer step: average ← momentum·average + (1 − momentum)·network.
    The averaged network runs in evaluation mode and without gradient. It is used as KappaFace's
    momentum encoder and for weight averaging.

    Args:
        network: the network to average.
        momentum: weight of the old average, in [0, 1).
        warm_up: limit the momentum of update k = 1, 2, … to (1 + k)/(10 + k), so that the average
            forgets the random initialization sooner even if the momentum is high.

    Source: KappaFace, arXiv 2201.07394, section 3.3 (momentum 0.9). The authors' code averages only
    the parameters, so its batch norms keep their initial statistics.

    >>> encoder = MomentumEncoder(nn.Linear(2, 1, bias=False), momentum=0.5)
    >>> network = nn.Linear(2, 1, bias=False)
    >>> before = encoder.average.weight.clone()
    >>> encoder.update(network)
    >>> torch.allclose(encoder.average.weight, (before + network.weight) / 2)
    True
    """

    updates: Tensor
    """Number of updates so far."""

    def __init__(self, network: nn.Module, momentum: float = 0.9, *, warm_up: bool = False) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum} must be in [0, 1)")
        self.momentum = momentum
        self.warm_up = warm_up
        # The counter is on the network's device, so that updates need not copy it there.
        device = next((parameter.device for parameter in network.parameters()), None)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64, device=device))
        self.average = copy.deepcopy(network).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> MomentumEncoder:
        """Stay in evaluation mode, whatever `mode` is."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.average(images)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Update the average with `network`; integer buffers are copied."""
        current = network.state_dict()
        self.updates += 1
        momentum = torch.full_like(self.updates, self.momentum, dtype=torch.float32)
        if self.warm_up:
            momentum = torch.minimum(momentum, (1 + self.updates) / (10 + self.updates))
        for name, averaged in self.average.state_dict().items():
            value = full_tensor(current[name])
            if averaged.is_floating_point():
                averaged.lerp_(value.to(averaged), (1 - momentum).to(averaged))
            else:
                averaged.copy_(value)
