"""Parameters of a network that some steps leave without a gradient, for which DDP would wait."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

NOT_FINISHED = "Expected to have finished reduction in the prior iteration"
"""How torch's DDP begins its own complaint."""
SHOWN = 5


def unused_parameters(network: nn.Module, image_size: int) -> list[str]:
    """Names of trainable parameters that one forward and backward pass leaves without a gradient.

    A copy of the network is tried, on two images; no random state moves.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.used, self.spare = nn.Linear(12, 2), nn.Linear(2, 1, bias=False)
    ...     def forward(self, images):
    ...         return self.used(images.flatten(1))
    >>> unused_parameters(Net(), 2)
    ['spare.weight']
    """
    trial = copy.deepcopy(network).train()
    trainable = _trainable(trial)
    if not trainable:
        return []
    dtype = next(iter(trainable.values())).dtype
    with torch.random.fork_rng(devices=[]):
        images = torch.randn(2, 3, image_size, image_size, dtype=dtype)
        embeddings = trial(images)
        if embeddings.requires_grad:
            embeddings.sum().backward()
    return [name for name, parameter in trainable.items() if parameter.grad is None]


def check_gradients(network: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Check after a backward pass that DDP, told that every parameter is used, waits for none.

    Args:
        network: for the names.
        parameters: its parameters; to walk through a network takes longer than this check.

    Raises:
        ValueError: naming the parameters without a gradient, and the remedy.
    """
    if any(each.grad is None and each.requires_grad for each in parameters):
        trainable = _trainable(network)
        raise _unused_error([name for name, each in trainable.items() if each.grad is None])


@contextmanager
def translated(network: nn.Module) -> Iterator[None]:
    """DDP's complaint about the step before, in a user's words.

    Raises:
        ValueError: naming the parameters without a gradient, and the remedy.
    """
    try:
        yield
    except RuntimeError as error:
        if NOT_FINISHED not in str(error):
            raise
        names = list(_trainable(network))
        indices = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        numbers = [int(number) for number in indices[1].split()] if indices else []
        raise _unused_error([names[each] for each in numbers if each < len(names)]) from error


def _trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in network.named_parameters() if each.requires_grad}


def _unused_error(names: Sequence[str]) -> ValueError:
    which = f": {_listed(names)}" if names else ""
    return ValueError(
        f"a training step left parameters of the network without a gradient{which}; several "
        "processes average every gradient and would wait for these. Set "
        "training.find_unused_parameters=true, so that each step looks for them, or remove or "
        "freeze them (requires_grad_(False))"
    )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
