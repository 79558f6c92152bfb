"""What is kept of the blocks of scores that stream past: the largest, the nearest, the mates'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from margrave.evaluation.score_blocks import Block


class Tail:
    """The largest impostor scores, exactly, and between whom.

    Args:
        keep: how many.
    """

    def __init__(self, keep: int) -> None:
        self.keep = max(1, keep)
        self._floor = -np.inf
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._held = 0

    def take(self, block: Block) -> None:
        """Keep what lies above the keep-th largest so far."""
        found = block.above(self._floor)
        if found is None:
            values, places = block.scores.flatten(), None
            if len(values) > 2 * self.keep:
                values, places = values.topk(self.keep)
            above = (values > self._floor).nonzero()[:, 0]
            values, places = values[above], above if places is None else places[above]
            width = block.scores.shape[1]
            found = values, places // width, places % width
        values, rows, columns = (part.cpu().numpy() for part in found)
        if len(values):
            self._add(values, rows + block.row, columns + block.column)

    def _add(self, scores: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        self._parts.append((scores, rows, columns))
        self._held += len(scores)
        if self._held >= self.keep and (
            self._floor == -np.inf or self._held > 1.5 * self.keep + 4096
        ):
            self._prune()

    def _prune(self) -> None:
        scores, rows, columns = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if len(scores) > self.keep:
            kept = np.argpartition(scores, len(scores) - self.keep)[-self.keep :]
            scores, rows, columns = scores[kept], rows[kept], columns[kept]
        if len(scores) == self.keep:
            self._floor = float(scores.min())
        self._parts, self._held = [(scores, rows, columns)], len(scores)

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(T,) scores from the largest on, and the (T,) numbers of both faces."""
        if not self._parts:
            return np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        self._prune()
        scores, rows, columns = self._parts[0]
        order = np.lexsort((columns, rows, -scores))
        return scores[order], rows[order], columns[order]

    def state(self) -> dict[str, np.ndarray]:
        """Everything kept so far."""
        scores, rows, columns = self.sorted()
        return {"scores": scores, "rows": rows, "columns": columns}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from ``state``."""
        self._floor, self._parts, self._held = -np.inf, [], 0
        self._add(state["scores"], state["rows"], state["columns"])

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """The largest of all."""
        self._floor, self._parts, self._held = -np.inf, [], 0
        for state in states:
            self._parts.append((state["scores"], state["rows"], state["columns"]))
            self._held += len(state["scores"])
        self._prune()


class Nearest:
    """Each face's most alike faces of the second set that are not its mates, exactly.

    Args:
        faces: N, the size of the first set.
        top_k: how many of each; fewer exist where the second set is smaller (−inf, −1).

    Attributes:
        scores: (N, top_k) from the largest on.
        columns: (N, top_k) which faces those are.
    """

    def __init__(self, faces: int, top_k: int) -> None:
        self.scores = np.full((faces, top_k), -np.inf, np.float64)
        self.columns = np.full((faces, top_k), -1, np.int64)

    def take(self, block: Block) -> None:
        """Merge into the rows that a score of this block enters."""
        rows = slice(block.row, block.row + len(block.scores))
        values, columns = self._entering(block, self.scores[rows, -1])
        if values.shape[1]:
            hot = (values[:, 0] > -torch.inf).nonzero()[:, 0]
            self._merge_rows(
                hot.cpu().numpy() + block.row,
                values[hot].cpu().double().numpy(),
                columns[hot].cpu().numpy() + block.column,
            )

    def _entering(self, block: Block, floor: np.ndarray) -> tuple[Tensor, Tensor]:
        """(R, m) what could be among each row's largest, −inf behind it, and (R, m) where it is."""
        top_k = self.scores.shape[1]
        # In the block's type, in which a large number may have become infinite.
        on_host = torch.from_numpy(floor).to(block.scores.dtype)
        lowest = on_host.to(block.scores.device, non_blocking=True)
        found = None if torch.isinf(on_host).any() else block.above(lowest[:, None])
        if found is None:
            values, columns = block.scores.topk(min(top_k, block.scores.shape[1]))
            return values, columns
        above, rows, columns = found
        counts = torch.bincount(rows, minlength=len(lowest))
        # Runs come by row, so each row's values stand together.
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        values = lowest.new_full((len(lowest), int(counts.max())), -torch.inf)
        where = torch.full(values.shape, -1, device=rows.device)
        values[rows, place], where[rows, place] = above, columns
        return values, where

    def _merge_rows(self, rows: np.ndarray, scores: np.ndarray, columns: np.ndarray) -> None:
        both = np.concatenate([self.scores[rows], scores], axis=1)
        whose = np.concatenate([self.columns[rows], columns], axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, : self.scores.shape[1]]
        self.scores[rows] = np.take_along_axis(both, order, axis=1)
        self.columns[rows] = np.take_along_axis(whose, order, axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """Everything kept so far."""
        return {"scores": self.scores.copy(), "columns": self.columns.copy()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from ``state``."""
        self.scores[:], self.columns[:] = state["scores"], state["columns"]

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """The most alike of all."""
        self.restore(states[0])
        for state in states[1:]:
            self._merge_rows(np.arange(len(self.scores)), state["scores"], state["columns"])


class Genuine:
    """The scores of all mates: 20 bytes each."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def take(self, block: Block) -> None:
        """Keep the block's mates."""
        if len(block.genuine):
            self._parts.append((block.genuine, block.genuine_rows, block.genuine_columns))

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(G,) scores in the order of the sets, and the (G,) numbers of both faces."""
        if not self._parts:
            return np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        scores, rows, columns = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((columns, rows))
        self._parts = [(scores[order], rows[order], columns[order])]
        return self._parts[0]

    def state(self) -> dict[str, np.ndarray]:
        """Everything kept so far."""
        scores, rows, columns = self.sorted()
        return {"scores": scores, "rows": rows, "columns": columns}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from ``state``."""
        self.merge([state])

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """All of them."""
        self._parts = [(state["scores"], state["rows"], state["columns"]) for state in states]
