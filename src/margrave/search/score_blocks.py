"""The sweep: computes every score between two sets of faces, block by block.

The sweep holds as many rows of the first set as a memory limit allows and compares them with the
second set, which it reads block by block. It shows each block of cosines once to every collector
and then overwrites the block. Collectors are exact: they skip a run of 64 columns only if the run's
maximum shows that they need none of its scores.
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
from margrave.hardware import numpy_multiplies_faster
from margrave.progress import Progress

ROWS_PER_BLOCK = 2048
COLUMNS_PER_BLOCK = 4096
MEMORY = 512 * 2**20
"""Default number of bytes of the first set to hold in memory at a time."""

RUN_LENGTH = 64
"""Number of columns in a run. A block stores the maximum of each run, so that collectors can skip
runs."""

MAX_UNIT_COLUMNS = 16384
"""Maximum columns per block if the second set's embeddings have unit length. Such embeddings are
not copied, so a block only needs memory for its scores. With one query, `_product` may use NumPy's
threads, and torch then reads the block's scores. Up to this size, torch does so in a single thread;
with larger blocks, its own threads and NumPy's would wait for each other."""

DISTRACTOR = -1
"""The label of distractors: faces of unknown identity, which have no mates."""


class Rows(Protocol):
    """(N, D) embeddings that are read by slices: in memory, memory-mapped or computed lazily."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __getitem__(self, part: slice, /) -> np.ndarray:
        """The rows of a slice."""
        ...


@dataclass(frozen=True, eq=False)
class Comparison:
    """Which faces are compared: all of one set with all of another, or all pairs within one set.

    Attributes:
        first: (N, D) embeddings of any norm.
        first_labels: (N,) integers; ``DISTRACTOR`` where the identity is unknown.
        second: (M, D) embeddings of any norm; None compares every pair within ``first`` once.
        second_labels: (M,) integers; None if all are distractors.
        second_is_unit: True if the rows of ``second`` already have unit length (or are zero and
            ``absent``); they are then used without being copied or normalized.
        absent: (M,) bool, True for rows of ``second`` to ignore, whose label must be `DISTRACTOR`;
            None to use all.

    Raises:
        ValueError: the embeddings' dimensions differ, or there is not one label per embedding.
    """

    first: Rows
    first_labels: np.ndarray
    second: Rows | None = None
    second_labels: np.ndarray | None = None
    second_is_unit: bool = False
    absent: np.ndarray | None = None

    def __post_init__(self) -> None:
        sides = [(self.first, self.first_labels, "first")]
        if self.second is not None:
            sides.append((self.second, self.labels_of_second(), "second"))
        for rows, labels, name in sides:
            if len(rows.shape) != 2 or rows.shape[1] != self.first.shape[1]:
                expected = "(N, D)" if name == "first" else f"(M, {self.first.shape[1]})"
                raise ValueError(
                    f"the {name} embeddings have shape {rows.shape}, must be {expected}; pass "
                    "(N, D) and (M, D) arrays from the same model"
                )
            if np.shape(labels) != (rows.shape[0],):
                raise ValueError(
                    f"the {name} labels have shape {np.shape(labels)}, the embeddings "
                    f"{rows.shape}; pass one label per embedding"
                )

    def labels_of_second(self) -> np.ndarray:
        """(M,) the second set's labels, or the first set's if that is compared with itself."""
        if self.second is None:
            return np.asarray(self.first_labels)
        if self.second_labels is None:
            return np.full(self.second.shape[0], DISTRACTOR)
        return np.asarray(self.second_labels)

    @property
    def pairs(self) -> int:
        """The number of pairs to compare."""
        count = self.first.shape[0]
        return count * (count - 1) // 2 if self.second is None else count * self.second.shape[0]


@dataclass(frozen=True, eq=False)
class Block:
    """Cosines between some rows of the first set and some rows ("columns") of the second.

    Attributes:
        scores: (R, K) cosines of R rows and K columns, K a multiple of ``RUN_LENGTH``. All but
            impostor pairs are −inf: mates, a face with itself, the second occurrence of a pair,
            absent columns, padding.
        run_maximum: (R, K / RUN_LENGTH) the maximum of each run of columns.
        row, column: the index of the block's first row in the first set, and of its first column in
            the second set.
        genuine: (G,) the cosines of the block's genuine pairs.
        genuine_rows, genuine_columns: (G,) the genuine pairs' indices in the first and second set.
    """

    scores: Tensor
    run_maximum: Tensor
    row: int
    column: int
    genuine: np.ndarray
    genuine_rows: np.ndarray
    genuine_columns: np.ndarray

    def above(self, floor: Tensor | float) -> tuple[Tensor, Tensor, Tensor] | None:
        """The scores above a floor, ordered by row.

        Args:
            floor: a number, or (R, 1) one per row.

        Returns:
            (n,) scores, their rows in the block and their columns in the block; or None if so many
            runs have scores above the floor that examining the entire block is faster.
        """
        rows, runs = (self.run_maximum > floor).nonzero(as_tuple=True)
        # With more than a quarter of the runs, examining the entire block is faster.
        if 4 * len(rows) > self.run_maximum.numel():
            return None
        values = self.scores.view(*self.run_maximum.shape, RUN_LENGTH)[rows, runs]
        run_floors = floor[rows] if isinstance(floor, Tensor) else floor
        selected, offset = (values > run_floors).nonzero(as_tuple=True)
        return values[selected, offset], rows[selected], runs[selected] * RUN_LENGTH + offset


class Collector(Protocol):
    """Keeps some of the scores; its state consists of arrays, which can be saved and restored."""

    def take(self, block: Block) -> None:
        """Keep those of a block's scores that the collector needs."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything kept so far."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a saved ``state``."""
        ...

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """Replace what is kept by the combined states of several sweeps over different blocks."""
        ...


State = dict[str, Any]
"""A sweep's state: ``done`` -> number of tiles finished or left to other ranks so far, and
collector's name -> collector's state."""


def sweep(
    comparison: Comparison,
    collectors: dict[str, Collector],
    *,
    device: str = "cpu",
    memory: int = MEMORY,
    world: World | None = None,
    progress: Progress | None = None,
    state: State | None = None,
    save_state: Callable[[Callable[[], State]], None] | None = None,
) -> None:
    """Compute the cosine of every pair once, and show it to the collectors.

    Args:
        comparison: which faces are compared.
        collectors: the collectors, by name.
        device: the device that computes the scores. If it does not support float64, float64
            embeddings are converted to float32.
        memory: number of bytes of the first set to hold at a time. The second set is read again for
            every portion of the first set that is held.
        world: the ranks that share the work; at the end, the collectors of every rank contain the
            merged result of all ranks.
        progress: called with (comparisons done, total).
        state: a saved state to resume from; see ``save_state``.
        save_state: called after each tile (the held rows against one block of columns) with a
            function that returns the current state. Each call of that function copies all that the
            collectors keep.

    Raises:
        ValueError: an embedding is zero or not finite, or the device is not available.
    """
    world = world or World()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device = {device!r} is not available here: {reason}") from error
    tiles_done = 0
    if state:
        tiles_done = int(state["done"])
        for name, collector in collectors.items():
            collector.restore(state[name])

    def snapshot() -> State:
        states = {name: collector.state() for name, collector in collectors.items()}
        return {"done": tiles_done, **states}

    pairs_done, unit_rows = 0, _UnitRows(comparison, device)
    for index, tile in enumerate(_tiles(comparison, memory)):
        if index >= tiles_done:
            if index % world.size == world.rank:
                _score_tile(comparison, collectors, tile, unit_rows)
            tiles_done = index + 1
            if save_state is not None:
                save_state(snapshot)
        pairs_done += tile.pairs
        if progress is not None:
            progress(pairs_done, comparison.pairs)
    if world.size > 1:
        states = gather_objects(snapshot(), world)
        for name, collector in collectors.items():
            collector.merge([rank_state[name] for rank_state in states])


@dataclass(frozen=True)
class _Tile:
    """A range of rows against a range of columns, in ``Block``s of at most ``ROWS_PER_BLOCK`` rows.

    Attributes:
        rows: indices in the first set.
        columns: indices in the second set.
        pairs: number of pairs to compare.
    """

    rows: range
    columns: range
    pairs: int


def _tiles(comparison: Comparison, memory: int) -> Iterator[_Tile]:
    """Divide a comparison into tiles.

    Args:
        comparison: which faces are compared.
        memory: number of bytes of the first set, as float32, to hold at a time.
    """
    first, second = comparison.first, comparison.second
    count = first.shape[0]
    held_rows = max(
        ROWS_PER_BLOCK, memory // (4 * first.shape[1]) // ROWS_PER_BLOCK * ROWS_PER_BLOCK
    )
    for start in range(0, count, held_rows):
        rows = range(start, min(start + held_rows, count))
        num_columns = count if second is None else second.shape[0]
        # Within one set, earlier columns were compared with these rows in earlier tiles.
        first_column = start if second is None else 0
        width = COLUMNS_PER_BLOCK
        if comparison.second_is_unit:
            # With few rows, use as many columns as give a block of the usual size.
            scores_per_block = ROWS_PER_BLOCK * COLUMNS_PER_BLOCK
            equal_size_width = scores_per_block // min(len(rows), ROWS_PER_BLOCK)
            width = max(width, min(MAX_UNIT_COLUMNS, equal_size_width))
        for column in range(first_column, num_columns, width):
            columns = range(column, min(column + width, num_columns))
            if second is not None:
                pairs = len(rows) * len(columns)
            else:
                # Column j is compared with the rows from start to min(j, rows.stop) − 1.
                pairs = int(np.minimum(np.arange(columns.start, columns.stop), rows.stop).sum())
                pairs -= start * len(columns)
            yield _Tile(rows, columns, pairs)


class _UnitRows:
    """Reads and normalizes rows; holds the rows of the first set that were last requested."""

    def __init__(self, comparison: Comparison, device: str) -> None:
        self._first, self._device = comparison.first, device
        self._second = comparison.first if comparison.second is None else comparison.second
        self._second_is_unit = comparison.second_is_unit
        # The indices of the held rows, and the rows.
        self._held, self._rows = range(0), torch.empty(0)
        self._has_float64 = has_float64(device)

    def rows(self, indices: range) -> Tensor:
        """(R, D) unit rows of the first set; they are held until other rows are needed."""
        if indices != self._held:
            # Free the held rows before reading the new ones.
            self._rows = torch.empty(0)
            blocks = [
                unit_block(self._first, start, min(start + ROWS_PER_BLOCK, indices.stop))
                for start in range(indices.start, indices.stop, ROWS_PER_BLOCK)
            ]
            rows = torch.cat(blocks)
            dtype = rows.dtype if self._has_float64 else torch.float32
            self._held, self._rows = indices, rows.to(self._device, dtype)
        return self._rows

    def columns(self, indices: range) -> Tensor:
        """(K, D) unit rows of the second set, on the device and in the dtype of the held rows."""
        start, stop = indices.start, indices.stop
        is_held = self._held.start <= start and stop <= self._held.stop
        if self._second is self._first and is_held:
            return self._rows[start - self._held.start : stop - self._held.start]
        if self._second_is_unit:
            return torch.from_numpy(self._second[start:stop]).to(self._rows)
        return unit_block(self._second, start, stop).to(self._rows)


def _score_tile(
    comparison: Comparison, collectors: dict[str, Collector], tile: _Tile, unit_rows: _UnitRows
) -> None:
    """Compute a tile's cosines and show them to the collectors, block by block."""
    within_first = comparison.second is None
    all_rows, columns = unit_rows.rows(tile.rows), unit_rows.columns(tile.columns)
    # If all columns are distractors, there are no mates.
    column_labels = np.empty(0, np.int64)
    if within_first or comparison.second_labels is not None:
        labels = comparison.labels_of_second()
        column_labels = labels[tile.columns.start : tile.columns.stop]
    label_order = np.argsort(column_labels, kind="stable")
    sorted_labels = column_labels[label_order]
    # Within one set, a row is compared only with later columns.
    row_stop = min(tile.rows.stop, tile.columns.stop) if within_first else tile.rows.stop
    # Pad the columns to a multiple of the run length; the padding's scores become −inf below.
    width = len(columns)
    if width % RUN_LENGTH:
        columns = torch.nn.functional.pad(columns, (0, 0, 0, -width % RUN_LENGTH))
    buffer = columns.new_empty(min(ROWS_PER_BLOCK, len(all_rows)), len(columns))
    absent = None if comparison.absent is None else comparison.absent[tile.columns.start :][:width]
    for start in range(tile.rows.start, row_stop, ROWS_PER_BLOCK):
        stop = min(start + ROWS_PER_BLOCK, row_stop)
        rows = all_rows[start - tile.rows.start : stop - tile.rows.start]
        scores = _product(rows, columns, buffer[: stop - start])
        mate_rows, mate_columns = _mates(
            comparison.first_labels[start:stop], label_order, sorted_labels
        )
        if within_first and stop > tile.columns.start:
            row_indices = torch.arange(start, stop, device=scores.device)[:, None]
            column_indices = torch.arange(len(columns), device=scores.device) + tile.columns.start
            # In this block, a pair may occur twice, and a face may meet itself: use only mates in
            # later columns.
            is_later = mate_rows + start < mate_columns + tile.columns.start
            mate_rows, mate_columns = mate_rows[is_later], mate_columns[is_later]
            genuine = _pop_scores(scores, mate_rows, mate_columns)
            scores.masked_fill_(column_indices <= row_indices, -torch.inf)
        else:
            genuine = _pop_scores(scores, mate_rows, mate_columns)
        scores[:, width:] = -torch.inf
        if absent is not None and absent.any():
            scores[:, :width].masked_fill_(torch.from_numpy(absent).to(scores.device), -torch.inf)
        block = Block(
            scores,
            scores.view(len(scores), -1, RUN_LENGTH).amax(2),
            start,
            tile.columns.start,
            genuine,
            mate_rows + start,
            mate_columns + tile.columns.start,
        )
        for collector in collectors.values():
            collector.take(block)


def _product(rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    """Write the (R, K) products of all rows and columns into ``out``."""
    if len(rows) == 1 and rows.device.type == "cpu" and numpy_multiplies_faster():
        np.matmul(columns.numpy(), rows[0].numpy(), out=out[0].numpy())
        return out
    return torch.mm(rows, columns.T, out=out)


def _pop_scores(scores: Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the (G,) scores at these rows and columns, and replace them by −inf in ``scores``."""
    if not len(rows):
        return np.empty(0, scores.new_empty(0).cpu().numpy().dtype)
    # Stack the indices so that they reach the device in one transfer.
    indices = torch.from_numpy(np.stack([rows, columns])).to(scores.device, non_blocking=True)
    genuine = scores[indices[0], indices[1]]
    scores[indices[0], indices[1]] = -torch.inf
    return genuine.cpu().numpy()


def _mates(
    row_labels: np.ndarray, label_order: np.ndarray, sorted_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(G,) rows and (G,) columns, relative to the block, of all genuine pairs in a block.

    Args:
        row_labels: (R,) the labels of the block's rows.
        label_order: (K,) the indices that sort the block's columns by label.
        sorted_labels: (K,) the labels of the columns in this order.
    """
    if not len(sorted_labels):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    starts = np.searchsorted(sorted_labels, row_labels, side="left")
    stops = np.searchsorted(sorted_labels, row_labels, side="right")
    counts = np.where(row_labels < 0, 0, stops - starts)
    rows = np.repeat(np.arange(len(row_labels)), counts)
    offsets = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, label_order[np.repeat(starts, counts) + offsets]


def has_float64(device: str | torch.device) -> bool:
    """True if a device supports float64; Apple's MPS does not.

    >>> has_float64("cpu")
    True
    """
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def unit_block(rows: Rows, start: int, stop: int) -> Tensor:
    """Read and normalize (stop − start, D) rows: float64 stays, other dtypes become float32.

    Raises:
        ValueError: a row is zero or not finite.
    """
    block = rows[start:stop] if not isinstance(rows, np.ndarray) else read_rows(rows, start, stop)
    values = torch.from_numpy(block)
    values = values if values.dtype == torch.float64 else values.float()
    lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    bad = (~(torch.isfinite(lengths) & (lengths > 0)))[:, 0].nonzero()[:, 0]
    if len(bad):
        indices = ", ".join(str(start + int(row)) for row in bad[:5])
        raise ValueError(
            f"embeddings {indices}{', ...' if len(bad) > 5 else ''} are zero, infinite or NaN, so "
            "they have no direction; check the model and these images"
        )
    return values / lengths
