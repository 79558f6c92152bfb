"""Sampler for images that are fetched in pieces, because each fetch is expensive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from margrave.data.loading import EpochSampler


class WindowSampler(EpochSampler):
    """Yields batches of (epoch, index) so that each process fetches each of its pieces only once.

    In each epoch the pieces are shuffled and split evenly among the workers of all ranks. Each
    worker shuffles the images within windows of several of its pieces. With the same numbers of
    ranks and workers, the order depends only on (seed, epoch), so (epoch, batch) is the entire
    state. If the numbers of ranks or workers change in the middle of an epoch, the remaining images
    are redistributed. `state` records how the earlier batches were distributed, which determines
    the remaining images.

    Args:
        pieces: (P + 1,) index of the first image of each of P pieces, then the number of images.
        window: number of images to shuffle together.
        batch_size: images per step, over all ranks.
        seed: seeds the order of every epoch.
        drop_last: drop the images at the end of an epoch that do not fill a step; see
            `EpochSampler`.
        rank: rank of this process.
        world_size: number of ranks.
        workers: reader processes per rank; they read the batches in turn, as in DataLoader.

    >>> sampler = WindowSampler([0, 3, 6, 9], window=6, batch_size=3, seed=0)
    >>> sorted(index for batch in sampler for epoch, index in batch)
    [0, 1, 2, 3, 4, 5, 6, 7, 8]
    """

    def __init__(
        self,
        pieces: Sequence[int] | np.ndarray,
        window: int,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
    ) -> None:
        self._pieces = np.asarray(pieces, np.int64)
        super().__init__(int(self._pieces[-1]), batch_size, seed, drop_last, rank, world_size)
        self._window, self._drop_last = window, drop_last
        self._workers = max(1, workers)
        # (ranks, workers, end) of each segment before the position; see `state`.
        self._segments: list[tuple[int, int, int]] = []

    def start_at(self, epoch: int, batch: int = 0) -> None:
        super().start_at(epoch, batch)
        if batch == 0:
            self._segments = []
        elif self._segments and self._segments[-1][2] > batch:
            raise ValueError(
                f"the segments end at batch {self._segments[-1][2]}, after batch {batch}, where "
                "training resumes; the checkpoint is damaged"
            )

    def state(self, batch: int) -> dict[str, Any]:
        """State before a batch: a digest of the pieces, and the segments of the earlier batches.

        A segment is a run of batches that were distributed among the same numbers of ranks and
        workers. It is stored as [ranks, workers, end] and begins where the previous segment ends;
        batch ``end`` is not part of it.
        """
        segments = [list(segment) for segment in self._earlier_segments()]
        if batch > (segments[-1][2] if segments else 0):
            segments.append([self._world_size, self._workers, batch])
        return {"pieces": self._digest, "segments": segments}

    def resume(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; call `start_at` afterwards.

        Raises:
            ValueError: the state is damaged or belongs to other pieces or windows.
        """
        if state.get("pieces") != self._digest:
            raise ValueError(
                "the checkpoint was written with other shards, pieces or windows, so the rest "
                "of the epoch is unknown; restore the original data.train"
            )
        # Checkpoints of version 0.1 store the segments under the key "legs".
        segments = state.get("segments", state.get("legs"))
        if not isinstance(segments, list):
            raise ValueError(f"segments = {segments!r} is not a list; the checkpoint is damaged")
        last_end = 0
        for segment in segments:
            is_valid = isinstance(segment, list) and [type(value) for value in segment] == [int] * 3
            # The limits on ranks and workers are for damaged checkpoints.
            if not is_valid or not (
                0 < segment[0] < 2**20 and 0 < segment[1] < 2**10 and last_end < segment[2]
            ):
                raise ValueError(f"segment {segment!r} is invalid; the checkpoint is damaged")
            last_end = segment[2]
        self._segments = [(world_size, workers, end) for world_size, workers, end in segments]

    @property
    def _digest(self) -> str:
        content = np.append(self._pieces, self._window).astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()

    def _earlier_segments(self) -> list[tuple[int, int, int]]:
        """Past segments; without the last one if the current ranks and workers continue it."""
        current = (self._world_size, self._workers)
        continues = self._segments and self._segments[-1][:2] == current
        return self._segments[:-1] if continues else self._segments

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, segments = self.epoch, self._earlier_segments()
        order, start = self._epoch_order(epoch), 0
        # Remove the images of earlier batches: repeat the distribution of each earlier segment, and
        # mark the images that its workers read.
        for number, (world_size, workers, end) in enumerate(segments):
            is_done = np.zeros(len(order), bool)
            worker_positions = self._distribute(
                len(order), start, world_size, workers, (epoch, number)
            )
            for (_, worker, per_batch), positions in worker_positions.items():
                batches_read = len(range(worker, end - start, workers))
                is_done[positions[: batches_read * per_batch]] = True
            order, start = order[~is_done], end
        worker_positions = self._distribute(
            len(order), start, self._world_size, self._workers, (epoch, len(segments))
        )
        images_of_worker = {
            worker: (per_batch, order[positions])
            for (rank, worker, per_batch), positions in worker_positions.items()
            if rank == self._rank
        }
        full_batches = self._length // self._batch_size
        for batch in range(self.batch, full_batches):
            # The workers take turns from batch `start` on: this one is the worker's batch `turn`.
            turn, worker = divmod(batch - start, self._workers)
            per_batch, worker_indices = images_of_worker[worker]
            indices = worker_indices[turn * per_batch : (turn + 1) * per_batch]
            yield [(epoch, index) for index in indices.tolist()]
        if not self._drop_last and max(self.batch, full_batches) < self.batches_per_epoch:
            # The ranks share the last images, which `_distribute` leaves out.
            last_batch = order[len(order) - self._length % self._batch_size :]
            rank_indices = np.array_split(last_batch, self._world_size)[self._rank]
            yield [(epoch, index) for index in rank_indices.tolist()]

    def _epoch_order(self, epoch: int) -> np.ndarray:
        """All image indices, with the pieces in the epoch's order."""
        # The final 1 makes this random stream differ from others with the same seed.
        generator = np.random.default_rng([self._seed, epoch, 0, 1])
        piece_order = generator.permutation(len(self._pieces) - 1)
        lengths = np.diff(self._pieces)[piece_order]
        new_starts = np.cumsum(lengths) - lengths
        return np.repeat(self._pieces[piece_order] - new_starts, lengths) + np.arange(self._length)

    def _distribute(
        self, length: int, start: int, world_size: int, workers: int, seeds: tuple[int, int]
    ) -> dict[tuple[int, int, int], np.ndarray]:
        """Distribute the remaining images of an epoch among the workers of all ranks.

        The last images, which do not fill a batch, are not distributed.

        Args:
            length: number of remaining images.
            start: index of the first remaining batch.
            world_size: number of ranks.
            workers: workers per rank.
            seeds: seeds of the shuffles, (epoch, number of the segment).

        Returns:
            A dict: (rank, worker, the rank's images per batch) -> positions of the worker's images
            among the remaining images, in reading order.
        """
        # The 3 makes this random stream differ from others with the same seed.
        generator = np.random.default_rng([self._seed, *seeds, 3])
        batches = self._length // self._batch_size - start
        rank_parts = np.array_split(np.arange(self._batch_size), world_size)
        worker_positions, begin = {}, 0
        for rank, per_batch in enumerate(map(len, rank_parts)):
            for worker in range(workers):
                end = begin + len(range(worker, batches, workers)) * per_batch
                windows = [
                    generator.permutation(np.arange(first, min(first + self._window, end)))
                    for first in range(begin, end, self._window)
                ]
                # The empty array is for workers without batches.
                worker_positions[rank, worker, per_batch] = np.concatenate([np.arange(0), *windows])
                begin = end
        assert begin <= length
        return worker_positions
