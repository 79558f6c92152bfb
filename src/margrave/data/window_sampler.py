"""Which images when, where they come in pieces that are dear to fetch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from margrave.data.loading import EpochSampler


class WindowSampler(EpochSampler):
    """Batches of (epoch, index) that let each process fetch each piece of the images once.

    In each epoch the pieces are put in a new order and dealt out in equal parts to the workers of
    all ranks; each shuffles its part within windows of neighbouring pieces. All of it is drawn from
    (seed, epoch), so the position is still the number of batches. With another number of ranks or
    workers the rest of an epoch is dealt out anew; what remains follows from `state`, which says
    how the batches before were dealt out.

    Args:
        pieces: (P + 1,) the first image of each piece, and the number of images.
        window: images that are shuffled together.
        batch_size: as for `EpochSampler`, like the next four.
        seed: of the orders.
        drop_last: leave out the images that do not fill a step.
        rank: which of the ranks this is.
        world_size: how many there are.
        workers: processes that read for each rank; batch k of the rest is read by worker
            k mod workers, as DataLoader deals them out.

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
        self._legs: list[tuple[int, int, int]] = []

    def start_at(self, epoch: int, batch: int = 0) -> None:
        super().start_at(epoch, batch)
        if batch == 0:
            self._legs = []
        elif self._legs and self._legs[-1][2] > batch:
            raise ValueError(f"legs to batch {self._legs[-1][2]} before batch {batch}; damaged")

    def state(self, batch: int) -> dict[str, Any]:
        """What the rest of the epoch hangs on: the pieces, and how batches so far were dealt out.

        Legs are (ranks, workers, end), one for each way in turn.
        """
        legs = [list(leg) for leg in self._earlier()]
        if batch > (legs[-1][2] if legs else 0):
            legs.append([self._world_size, self._workers, batch])
        return {"pieces": self._digest, "legs": legs}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` told; `start_at` follows.

        Raises:
            ValueError: it is of other pieces or windows, or was not told by `state`.
        """
        if state.get("pieces") != self._digest:
            raise ValueError(
                "the checkpoint was written with other shards, pieces or windows, so what is left "
                "of the epoch is not known; set data.train back to what it was"
            )
        legs, last = state.get("legs"), 0
        if not isinstance(legs, list):
            raise ValueError(f"legs = {legs!r}; the checkpoint is damaged")
        for leg in legs:
            whole = isinstance(leg, list) and [type(number) for number in leg] == [int] * 3
            if not whole or not (0 < leg[0] < 2**20 and 0 < leg[1] < 2**10 and last < leg[2]):
                raise ValueError(f"leg {leg!r} of the epoch; the checkpoint is damaged")
            last = leg[2]
        self._legs = [(world, workers, end) for world, workers, end in legs]

    @property
    def _digest(self) -> str:
        content = np.append(self._pieces, self._window).astype("<i8").tobytes()
        return hashlib.sha256(content).hexdigest()

    def _earlier(self) -> list[tuple[int, int, int]]:
        """The legs behind, without the last where it was dealt out as now."""
        same = self._legs and self._legs[-1][:2] == (self._world_size, self._workers)
        return self._legs[:-1] if same else self._legs

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, legs = self.epoch, self._earlier()
        order, start = self._in_pieces(epoch), 0
        for number, (world_size, workers, end) in enumerate(legs):
            gone = np.zeros(len(order), bool)
            streams = self._deal(len(order), start, world_size, workers, (epoch, number))
            for (_, worker, each), places in streams.items():
                gone[places[: len(range(worker, end - start, workers)) * each]] = True
            order, start = order[~gone], end
        streams = self._deal(len(order), start, self._world_size, self._workers, (epoch, len(legs)))
        own = {key[1]: (key[2], order[at]) for key, at in streams.items() if key[0] == self._rank}
        full = self._length // self._batch_size
        for batch in range(self.batch, full):
            turn, worker = divmod(batch - start, self._workers)
            each, images = own[worker]
            yield [(epoch, index) for index in images[turn * each : (turn + 1) * each].tolist()]
        if not self._drop_last and max(self.batch, full) < self.batches_per_epoch:
            rest = order[len(order) - self._length % self._batch_size :]
            mine = np.array_split(rest, self._world_size)[self._rank]
            yield [(epoch, index) for index in mine.tolist()]

    def _in_pieces(self, epoch: int) -> np.ndarray:
        """All images, the pieces in the epoch's order."""
        generator = np.random.default_rng([self._seed, epoch, 0, 1])
        pieces = generator.permutation(len(self._pieces) - 1)
        lengths = np.diff(self._pieces)[pieces]
        starts = np.cumsum(lengths) - lengths
        return np.repeat(self._pieces[pieces] - starts, lengths) + np.arange(self._length)

    def _deal(
        self, length: int, start: int, world_size: int, workers: int, words: tuple[int, int]
    ) -> dict[tuple[int, int, int], np.ndarray]:
        """What each (rank, worker, images a batch) takes of what is left from a batch on."""
        generator = np.random.default_rng([self._seed, *words, 3])
        steps = self._length // self._batch_size - start
        shares = [len(part) for part in np.array_split(np.arange(self._batch_size), world_size)]
        streams, begin = {}, 0
        for rank, each in enumerate(shares):
            for worker in range(workers):
                end = begin + len(range(worker, steps, workers)) * each
                parts = [
                    generator.permutation(np.arange(first, min(first + self._window, end)))
                    for first in range(begin, end, self._window)
                ]
                streams[rank, worker, each] = np.concatenate([np.arange(0), *parts])
                begin = end
        assert begin <= length
        return streams
