"""Sample the classes of a training step (Partial FC)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_classes(
    positions: Tensor, is_owned: Tensor, num_classes: int, count: int, seed: Sequence[int]
) -> Tensor:
    """Sample `count` classes without replacement, including all classes of the batch.

    Args:
        positions: (A,) row of each sample's class in this rank's weight; may repeat.
        is_owned: (A,) whether this rank owns each sample's class; other samples are ignored.
        num_classes: number of this rank's classes, from which to sample.
        count: number of classes to sample; raised to A and then limited to `num_classes`.
        seed: integers; the same seed gives the same classes on any device.

    Returns:
        (K,) int64 rows of the sampled classes in this rank's weight, ascending. K does not depend
        on the labels, so the host knows it without waiting for the device.

    >>> labels = torch.tensor([7, 2, 7])
    >>> is_owned = torch.tensor([True, True, True])
    >>> sample_classes(labels, is_owned, 10, 10, (0,)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> len(sample_classes(labels, is_owned, 1000, 10, (0,)))
    10
    """
    # The extra last score is for samples whose class another rank owns.
    scores = torch.empty(num_classes + 1)
    torch.rand(num_classes, generator=_generator(seed), out=scores[:-1])
    scores = scores.to(positions.device, non_blocking=True)
    # Random scores are below 1, so a score of 2 always selects the classes of the batch.
    scores.index_fill_(0, torch.where(is_owned, positions, num_classes), 2.0)
    count = min(max(count, len(positions)), num_classes)
    return scores[:-1].topk(count, sorted=False).indices.sort().values


def _generator(seed: Sequence[int]) -> torch.Generator:
    """A CPU generator whose seed depends on all of the integers."""
    mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    # Without the lowest bit, the seed fits into a signed 64-bit integer.
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
