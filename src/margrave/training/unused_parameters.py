"""Finds parameters that get no gradient; DDP would wait for their gradients."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from margrave.files import listed

NOT_FINISHED = "Expected to have finished reduction in the prior iteration"
"""The beginning of DDP's error message about parameters without a gradient."""
MAX_LISTED = 5
"""Maximum number of parameters that a message names."""


def unused_parameters(network: nn.Module, image_size: int) -> list[str]:
    """Names of trainable parameters that one forward and backward pass leaves without a gradient.

    The pass runs on a copy of the network with two random images. Torch's random state is restored.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.used, self.spare = nn.Linear(12, 2), nn.Linear(2, 1, bias=False)
    ...     def forward(self, images):
    ...         return self.used(images.flatten(1))
    >>> unused_parameters(Net(), 2)
    ['spare.weight']
    """
    network_copy = copy.deepcopy(network).train()
    trainable = _trainable(network_copy)
    if not trainable:
        return []
    dtype = next(iter(trainable.values())).dtype
    with torch.random.fork_rng(devices=[]):
        images = torch.randn(2, 3, image_size, image_size, dtype=dtype)
        embeddings = network_copy(images)
        if embeddings.requires_grad:
            embeddings.sum().backward()
    return [name for name, parameter in trainable.items() if parameter.grad is None]


def check_gradients(network: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Check after a backward pass that every trainable parameter has a gradient.

    DDP would wait for the missing gradients.

    Args:
        network: the network, for the parameters' names.
        parameters: the network's parameters. The caller has collected them already; collecting
            them again would take longer than this check.

    Raises:
        ValueError: parameters have no gradient; the message names them and the remedy.
    """
    if any(p.grad is None and p.requires_grad for p in parameters):
        trainable = _trainable(network)
        raise _unused_error(
            [name for name, parameter in trainable.items() if parameter.grad is None]
        )


@contextmanager
def explain_ddp_errors(network: nn.Module) -> Iterator[None]:
    """Context that explains DDP's error about gradients missing in the previous step.

    Raises:
        ValueError: parameters had no gradient; the message names them and the remedy.
    """
    try:
        yield
    except RuntimeError as error:
        if NOT_FINISHED not in str(error):
            raise
        # DDP's message numbers the trainable parameters from 0.
        names = list(_trainable(network))
        match = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        indices = [int(number) for number in match[1].split()] if match else []
        raise _unused_error([names[index] for index in indices if index < len(names)]) from error


def _trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _unused_error(names: Sequence[str]) -> ValueError:
    examples = f": {listed(names, MAX_LISTED)}" if names else ""
    return ValueError(
        f"a training step left parameters of the network without a gradient{examples}; with "
        "several processes, DDP would wait for these gradients. Set "
        "training.find_unused_parameters=true, so that each step looks for such parameters, or "
        "remove or freeze them (requires_grad_(False))"
    )
