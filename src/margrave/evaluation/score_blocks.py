"""Every score of one set of faces against another, block by block; only what is kept is held.

The second set streams past as much of the first as fits into memory; each block of cosines is seen
once by every collector and then overwritten. What collectors keep is exact: they look at every
score, and a row whose largest score cannot matter is passed over after one comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from margrave.distributed import World, gather_objects
from margrave.files import read_rows

ROWS_AT_ONCE = 2048
COLUMNS_AT_ONCE = 4096
MEMORY = 512 * 2**20
"""Bytes of the first set that are held at a time."""

RUN = 64

NOBODY = -1
"""The label of faces whose identity is not known: nobody's mates."""


class Rows(Protocol):
    """(N, D) embeddings read by slices: an array, a memory-mapped one, or one made on the way."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """Some of the rows."""
        ...


@dataclass(frozen=True, eq=False)
class Comparison:
    """Which faces are compared: all of one set with all of another, or each two of one set.

    Attributes:
        first: (N, D) embeddings; their lengths do not matter.
        first_labels: (N,) integers; ``NOBODY`` where the identity is not known.
        second: (M, D); None compares each two of ``first``, once.
        second_labels: (M,); None where all are nobody's.

    Raises:
        ValueError: embeddings of two widths, labels of another length.
    """

    first: Rows
    first_labels: np.ndarray
    second: Rows | None = None
    second_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        sides = [(self.first, self.first_labels, "first")]
        if self.second is not None:
            labels = self.second_labels
            sides.append(
                (self.second, self.labels_of_second() if labels is None else labels, "second")
            )
        for rows, labels, name in sides:
            if len(rows.shape) != 2 or rows.shape[1] != self.first.shape[1]:
                raise ValueError(
                    f"the {name} embeddings are {rows.shape}, the first {self.first.shape}; "
                    "give (N, D) and (M, D) by one model"
                )
            if np.shape(labels) != (rows.shape[0],):
                raise ValueError(
                    f"{name} labels {np.shape(labels)} for embeddings {rows.shape}; "
                    "give one for each"
                )

    def labels_of_second(self) -> np.ndarray:
        """(M,) the second set's labels, or the first's where it is compared with itself."""
        if self.second is None:
            return np.asarray(self.first_labels)
        if self.second_labels is None:
            return np.full(self.second.shape[0], NOBODY)
        return np.asarray(self.second_labels)

    @property
    def pairs(self) -> int:
        """How many comparisons these are."""
        count = self.first.shape[0]
        return count * (count - 1) // 2 if self.second is None else count * self.second.shape[0]


@dataclass(frozen=True, eq=False)
class Block:
    """Cosines of some rows of the first set with some of the second.

    Attributes:
        scores: (R, K) cosines, K a multiple of ``RUN``; −inf where a pair does not count as
            impostor: mates, a face with itself, a pair that was seen the other way round, columns
            that there are not.
        run_maximum: (R, K / RUN) the largest of each run of columns, so that collectors need to
            look into few of them.
        row, column: where the block begins.
        genuine: (G,) the cosines of mates.
        genuine_rows, genuine_columns: (G,) their numbers in the sets.
    """

    scores: Tensor
    run_maximum: Tensor
    row: int
    column: int
    genuine: np.ndarray
    genuine_rows: np.ndarray
    genuine_columns: np.ndarray

    def above(self, floor: Tensor | float) -> tuple[Tensor, Tensor, Tensor] | None:
        """(n,) values above the floor, one or (R, 1), their rows and columns here, by row.

        None where so many runs hold some that looking into each would not pay.
        """
        rows, runs = (self.run_maximum > floor).nonzero(as_tuple=True)
        if 4 * len(rows) > self.run_maximum.numel():
            return None
        values = self.scores.view(*self.run_maximum.shape, RUN)[rows, runs]
        bound = floor[rows] if isinstance(floor, Tensor) else floor
        which, places = (values > bound).nonzero(as_tuple=True)
        return values[which, places], rows[which], runs[which] * RUN + places


class Collector(Protocol):
    """What is kept of all scores; its state is plain arrays, so that a sweep can be interrupted."""

    def take(self, block: Block) -> None:
        """See a block."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Everything kept so far."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from ``state``."""
        ...

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """Keep what several sweeps over different blocks kept."""
        ...


State = dict[str, Any]
Progress = Callable[[int, int], None]


def sweep(
    comparison: Comparison,
    collectors: dict[str, Collector],
    *,
    device: str = "cpu",
    memory: int = MEMORY,
    world: World | None = None,
    progress: Progress | None = None,
    state: State | None = None,
    keep_state: Callable[[Callable[[], State]], None] | None = None,
) -> None:
    """Show every pair's cosine to the collectors once.

    Args:
        comparison: who is compared with whom.
        collectors: what is kept, by name.
        device: where the products are computed; in float32 where it has no float64.
        memory: bytes of the first set to hold at a time; its parts see the second set one by one.
        world: ranks share the blocks out; all end with the same collectors.
        progress: called with (comparisons done, comparisons in all).
        state: go on from here; see ``keep_state``.
        keep_state: called after each block of columns with a function that tells the state; may
            call it and store what it returns, however rarely.

    Raises:
        ValueError: embeddings that are zero or not finite, naming the rows.
    """
    world = world or World()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device = {device!r} cannot be used here: {reason}") from error
    done = 0
    if state:
        done = int(state["done"])
        for name, collector in collectors.items():
            collector.restore(state[name])

    def told() -> State:
        return {"done": done, **{name: each.state() for name, each in collectors.items()}}

    seen, held = 0, _HeldRows(comparison, device)
    for number, work in enumerate(_work(comparison, memory)):
        if number >= done:
            if number % world.size == world.rank:
                _see(comparison, collectors, work, held)
            done = number + 1
            if keep_state is not None:
                keep_state(told)
        seen += work.pairs
        if progress is not None:
            progress(seen, comparison.pairs)
    if world.size > 1:
        states = gather_objects(told(), world)
        for name, collector in collectors.items():
            collector.merge([each[name] for each in states])


@dataclass(frozen=True)
class _Work:
    """Rows start to stop against columns start to stop."""

    rows: range
    columns: range
    pairs: int


def _work(comparison: Comparison, memory: int) -> Iterator[_Work]:
    first, second = comparison.first, comparison.second
    count = first.shape[0]
    held = max(ROWS_AT_ONCE, memory // (4 * first.shape[1]) // ROWS_AT_ONCE * ROWS_AT_ONCE)
    for start in range(0, count, held):
        rows = range(start, min(start + held, count))
        others = count if second is None else second.shape[0]
        begin = start if second is None else 0
        for column in range(begin, others, COLUMNS_AT_ONCE):
            columns = range(column, min(column + COLUMNS_AT_ONCE, others))
            if second is not None:
                pairs = len(rows) * len(columns)
            else:
                # Column j has j − start partners among these rows, but no more than there are.
                pairs = int(np.minimum(np.arange(columns.start, columns.stop), rows.stop).sum())
                pairs -= start * len(columns)
            yield _Work(rows, columns, pairs)


class _HeldRows:
    """The rows at hand, read and normalised once for all blocks of columns."""

    def __init__(self, comparison: Comparison, device: str) -> None:
        self._first, self._device = comparison.first, device
        self._second = comparison.first if comparison.second is None else comparison.second
        self._part, self._rows = range(0), torch.empty(0)
        self._has_float64 = has_float64(device)

    def rows(self, part: range) -> Tensor:
        """Of the first set."""
        if part != self._part:
            self._rows = torch.empty(0)
            blocks = [
                unit_block(self._first, start, min(start + ROWS_AT_ONCE, part.stop))
                for start in range(part.start, part.stop, ROWS_AT_ONCE)
            ]
            rows = torch.cat(blocks)
            dtype = rows.dtype if self._has_float64 else torch.float32
            self._part, self._rows = part, rows.to(self._device, dtype)
        return self._rows

    def columns(self, part: range) -> Tensor:
        """Of the second."""
        inside = self._part.start <= part.start and part.stop <= self._part.stop
        if self._second is self._first and inside:
            return self._rows[part.start - self._part.start : part.stop - self._part.start]
        return unit_block(self._second, part.start, part.stop).to(self._rows)


def _see(
    comparison: Comparison, collectors: dict[str, Collector], work: _Work, held: _HeldRows
) -> None:
    itself = comparison.second is None
    all_rows, columns = held.rows(work.rows), held.columns(work.columns)
    column_labels = comparison.labels_of_second()[work.columns.start : work.columns.stop]
    by_label = np.argsort(column_labels, kind="stable")
    sorted_labels = column_labels[by_label]
    last = min(work.rows.stop, work.columns.stop) if itself else work.rows.stop
    # Columns up to a whole number of runs; nobody's score with them counts.
    columns = torch.nn.functional.pad(columns, (0, 0, 0, -len(columns) % RUN))
    room = columns.new_empty(ROWS_AT_ONCE, len(columns))
    for start in range(work.rows.start, last, ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, last)
        part = all_rows[start - work.rows.start : stop - work.rows.start]
        scores = torch.mm(part, columns.T, out=room[: stop - start])
        rows, places = _mates(comparison.first_labels[start:stop], by_label, sorted_labels)
        if itself and stop > work.columns.start:
            row_numbers = torch.arange(start, stop, device=scores.device)[:, None]
            numbers = torch.arange(len(columns), device=scores.device) + work.columns.start
            later = rows + start < places + work.columns.start
            rows, places = rows[later], places[later]
            genuine = _taken_out(scores, rows, places)
            scores.masked_fill_(numbers <= row_numbers, -torch.inf)
        else:
            genuine = _taken_out(scores, rows, places)
        scores[:, len(work.columns) :] = -torch.inf
        block = Block(
            scores,
            scores.view(len(scores), -1, RUN).amax(2),
            start,
            work.columns.start,
            genuine,
            rows + start,
            places + work.columns.start,
        )
        for collector in collectors.values():
            collector.take(block)


def _taken_out(scores: Tensor, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(G,) the scores of mates, whose places are −inf from now on."""
    # One copy each way instead of one for every use of the two.
    where = torch.from_numpy(np.stack([rows, places])).to(scores.device, non_blocking=True)
    genuine = scores[where[0], where[1]]
    scores[where[0], where[1]] = -torch.inf
    return genuine.cpu().numpy()


def _mates(
    labels: np.ndarray, by_label: np.ndarray, sorted_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(G,) rows and (G,) columns of one identity."""
    begin = np.searchsorted(sorted_labels, labels, side="left")
    counts = np.where(labels < 0, 0, np.searchsorted(sorted_labels, labels, side="right") - begin)
    rows = np.repeat(np.arange(len(labels)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, by_label[np.repeat(begin, counts) + within]


def has_float64(device: str | torch.device) -> bool:
    """Whether a device computes in float64; Apple's does not.

    >>> has_float64("cpu")
    True
    """
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def unit_block(rows: Rows, start: int, stop: int) -> Tensor:
    """Rows start to stop divided by their lengths, float64 if they are and float32 otherwise.

    Raises:
        ValueError: zero rows, or rows that are not finite, naming them.
    """
    part = rows[start:stop] if not isinstance(rows, np.ndarray) else read_rows(rows, start, stop)
    values = torch.from_numpy(part)
    values = values if values.dtype == torch.float64 else values.float()
    lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    bad = (~(torch.isfinite(lengths) & (lengths > 0)))[:, 0].nonzero()[:, 0]
    if len(bad):
        shown = ", ".join(str(start + int(row)) for row in bad[:5])
        raise ValueError(
            f"embeddings {shown}{', ...' if len(bad) > 5 else ''} are zero, infinite or NaN and "
            "have no direction; check the model and those images"
        )
    units = values / lengths
    return units
