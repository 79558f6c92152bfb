"""The one exchange between ranks per step: a small tensor, copied to the host without blocking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from margrave.data import Batch, Unreadable
from margrave.distributed import gather_rows
from margrave.training.interruption import StopSignals
from margrave.training.state import TrainingState
from margrave.training.transfer import Readback


@dataclass(frozen=True)
class SharedStatus:
    """What every rank knows after a step.

    Attributes:
        sizes: the number of images of each rank in the next step.
        any_unreadable: whether any rank found new unreadable images for the next step.
        checkpoint_due: whether a checkpoint is due on any rank.
        stop: whether any rank was asked to stop.
        sums: values of the step, summed over ranks.
        values: values of the step that are equal on every rank.
    """

    sizes: tuple[int, ...]
    any_unreadable: bool
    checkpoint_due: bool
    stop: bool
    sums: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Synchronization:
    """A `SharedStatus` that is being copied to the host, which waits for nothing else in a step."""

    readback: Readback
    ranks: int
    sums: int

    def wait(self) -> SharedStatus:
        numbers = self.readback.wait()
        width = self.sums + 4
        rows = [numbers[rank * width : (rank + 1) * width] for rank in range(self.ranks)]
        sizes, unreadable, due, stop = zip(*(row[self.sums :] for row in rows), strict=True)
        return SharedStatus(
            sizes=tuple(int(size) for size in sizes),
            any_unreadable=any(unreadable),
            checkpoint_due=any(due),
            stop=any(stop),
            sums=tuple(
                sum(column) for column in zip(*(row[: self.sums] for row in rows), strict=True)
            ),
            values=tuple(numbers[self.ranks * width :]),
        )


def synchronize(
    training: TrainingState,
    next_batch: Batch | None,
    *,
    due: bool = False,
    stop: StopSignals,
    sums: Sequence[Tensor] = (),
    values: Sequence[Tensor] = (),
) -> Synchronization:
    """Start to share the results of a step, and facts about the next step, with all ranks.

    Args:
        training: the training state.
        next_batch: this rank's batch of the next step.
        due: whether a checkpoint is due on this rank.
        stop: this rank's stop signals.
        sums: () each; they are summed over ranks.
        values: () each; they must be equal on every rank.
    """
    world, zero = training.world, training.head.weight.new_zeros(())
    unreadable = [] if next_batch is None else new_unreadable(training, next_batch)
    size = 0 if next_batch is None else len(next_batch.labels)
    facts = size, len(unreadable), int(due), int(stop.requested)
    # Created on the device: copying numbers to it would make the host wait.
    own = [*sums, *(zero.new_full((), number) for number in facts)]
    row = torch.stack([value.detach().to(zero) for value in own])
    rows = gather_rows(row[None], [1] * world.size, world).flatten()
    shared = [value.detach().to(zero)[None] for value in values]
    return Synchronization(Readback(torch.cat([rows, *shared])), world.size, len(sums))


def new_unreadable(training: TrainingState, batch: Batch) -> list[Unreadable]:
    """The batch's unreadable images that were not recorded before."""
    return [image for image in batch.unreadable if image.name not in training.unreadable]
