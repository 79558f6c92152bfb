"""Exchanges the ranks' status once per step, in a small tensor that is copied without blocking."""

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
    """The status that all ranks know after a step.

    Attributes:
        sizes: the number of images of each rank in the next step; 0 at the end of the epoch.
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
    """A `SharedStatus` that is being copied to the host.

    In a training step, the host waits for the device only in `wait`.

    Attributes:
        readback: the copy: one row of numbers per rank, followed by `SharedStatus.values`.
        num_ranks: number of ranks.
        num_sums: number of values to sum over ranks.
    """

    readback: Readback
    num_ranks: int
    num_sums: int

    def wait(self) -> SharedStatus:
        """Wait until the copy has finished, and return the status."""
        values = self.readback.wait()
        # A rank's row has its sums, followed by the four numbers of its status.
        width = self.num_sums + 4
        rows = [values[rank * width : (rank + 1) * width] for rank in range(self.num_ranks)]
        sizes, unreadable, due, stop = zip(*(row[self.num_sums :] for row in rows), strict=True)
        return SharedStatus(
            sizes=tuple(int(size) for size in sizes),
            any_unreadable=any(unreadable),
            checkpoint_due=any(due),
            stop=any(stop),
            sums=tuple(
                sum(column) for column in zip(*(row[: self.num_sums] for row in rows), strict=True)
            ),
            values=tuple(values[self.num_ranks * width :]),
        )


def synchronize(
    training: TrainingState,
    next_batch: Batch | None,
    *,
    checkpoint_due: bool = False,
    stop_signals: StopSignals,
    sums: Sequence[Tensor] = (),
    values: Sequence[Tensor] = (),
) -> Synchronization:
    """Start to share the results of this rank's step, and its status, with all ranks.

    Args:
        training: the training state.
        next_batch: this rank's batch of the next step, or None at the end of the epoch.
        checkpoint_due: whether a checkpoint is due on this rank.
        stop_signals: this rank's stop signals.
        sums: scalar tensors to sum over ranks.
        values: scalar tensors that are equal on every rank.

    Returns:
        the exchange in progress; its `Synchronization.wait` returns the shared status.
    """
    # All numbers are sent in the dtype and on the device of the head's weight.
    world, scalar = training.world, training.head.weight.new_zeros(())
    unreadable = [] if next_batch is None else new_unreadable(training, next_batch)
    size = 0 if next_batch is None else len(next_batch.labels)
    status = size, len(unreadable), int(checkpoint_due), int(stop_signals.requested)
    # The tensors are created on the device, because copying numbers to it would make the host wait.
    rank_values = [*sums, *(scalar.new_full((), value) for value in status)]
    row = torch.stack([value.detach().to(scalar) for value in rank_values])
    # Each rank contributes one row.
    rows = gather_rows(row[None], [1] * world.size, world).flatten()
    shared = [value.detach().to(scalar)[None] for value in values]
    return Synchronization(Readback(torch.cat([rows, *shared])), world.size, len(sums))


def new_unreadable(training: TrainingState, batch: Batch) -> list[Unreadable]:
    """The batch's unreadable images that were not recorded before."""
    return [image for image in batch.unreadable if image.name not in training.unreadable]
