"""Which classes take part in a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_classes(positives: Tensor, num_classes: int, count: int, seed: Sequence[int]) -> Tensor:
    """The classes of the batch, and others drawn without replacement until there are `count`.

    Args:
        positives: the batch's classes, repeats allowed; all of them are taken, even above `count`.
        num_classes: how many there are to draw from.
        count: how many to take.
        seed: whole numbers; the same ones give the same classes on any device.

    Returns:
        (K,) int64, ascending.

    >>> sample_classes(torch.tensor([7, 7]), 10, 10, (0,)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> len(sample_classes(torch.tensor([7, 2, 7]), 1000, 10, (0,)))
    10
    """
    scores = torch.rand(num_classes, generator=_generator(seed))
    scores = scores.to(positives.device)
    scores[positives] = 2.0
    taken = int((scores == 2.0).sum())
    return scores.topk(min(max(count, taken), num_classes), sorted=False).indices.sort().values


def _generator(seed: Sequence[int]) -> torch.Generator:
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
