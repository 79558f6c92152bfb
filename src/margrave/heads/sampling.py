"""Which classes take part in a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_classes(
    positions: Tensor, own: Tensor, num_classes: int, count: int, seed: Sequence[int]
) -> Tensor:
    """The classes of the batch, and others drawn without replacement until there are `count`.

    Args:
        positions: (A,) the batch's classes, repeats allowed.
        own: (A,) bool, which of them are among the classes to draw from; all of those are taken.
        num_classes: how many there are to draw from.
        count: how many to take; at least as many as the batch has samples are.
        seed: whole numbers; the same ones give the same classes on any device.

    Returns:
        (K,) int64, ascending. K does not depend on the labels, so no device is waited for.

    >>> labels = torch.tensor([7, 2, 7])
    >>> sample_classes(labels, labels > 0, 10, 10, (0,)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> len(sample_classes(labels, labels > 0, 1000, 10, (0,)))
    10
    """
    # One more than there are, for the batch's classes that others own.
    scores = torch.empty(num_classes + 1)
    torch.rand(num_classes, generator=_generator(seed), out=scores[:-1])
    scores = scores.to(positions.device, non_blocking=True)
    scores.index_fill_(0, torch.where(own, positions, num_classes), 2.0)
    count = min(max(count, len(positions)), num_classes)
    return scores[:-1].topk(count, sorted=False).indices.sort().values


def _generator(seed: Sequence[int]) -> torch.Generator:
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
