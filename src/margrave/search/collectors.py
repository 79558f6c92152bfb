"""Collectors: keep the largest impostor scores, each face's nearest faces, or genuine scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from margrave.search.score_blocks import Block


class Tail:
    """Keeps exactly the largest impostor scores, with their pairs.

    Args:
        max_scores: the number of scores to keep; all are kept if there are fewer.
    """

    def __init__(self, max_scores: int) -> None:
        self.max_scores = max(1, max_scores)
        # Once the floor is finite, at least `max_scores` kept scores are at or above it, so later
        # scores at or below it are not needed.
        self._floor = -np.inf
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0

    def take(self, block: Block) -> None:
        """Keep the block's scores that may be among the ``max_scores`` largest."""
        candidates = block.above(self._floor)
        if candidates is None:
            # Too many runs have scores above the floor: examine the entire block.
            values, indices = block.scores.flatten(), None
            # `topk` is worthwhile only if it leaves out more than half of the scores.
            if len(values) > 2 * self.max_scores:
                values, indices = values.topk(self.max_scores)
            above = (values > self._floor).nonzero()[:, 0]
            values, indices = values[above], above if indices is None else indices[above]
            width = block.scores.shape[1]
            candidates = values, indices // width, indices % width
        scores, rows, columns = (tensor.cpu().numpy() for tensor in candidates)
        if len(scores):
            self._add(scores, rows + block.row, columns + block.column)

    def _add(self, scores: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        self._parts.append((scores, rows, columns))
        self._count += len(scores)
        # Prune as soon as a floor can be set. Later, prune only when many superfluous scores have
        # accumulated, because pruning is slow.
        if self._count >= self.max_scores and (
            self._floor == -np.inf or self._count > 1.5 * self.max_scores + 4096
        ):
            self._prune()

    def _prune(self) -> None:
        """Keep only the ``max_scores`` largest scores; raise the floor if there are that many."""
        scores, rows, columns = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        if len(scores) > self.max_scores:
            largest = np.argpartition(scores, len(scores) - self.max_scores)[-self.max_scores :]
            scores, rows, columns = scores[largest], rows[largest], columns[largest]
        if len(scores) == self.max_scores:
            self._floor = float(scores.min())
        self._parts, self._count = [(scores, rows, columns)], len(scores)

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(T,) the kept scores, descending, and their (T,) rows and columns; T ≤ ``max_scores``."""
        if not self._parts:
            return np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        self._prune()
        scores, rows, columns = self._parts[0]
        order = np.lexsort((columns, rows, -scores))
        return scores[order], rows[order], columns[order]

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything kept so far."""
        scores, rows, columns = self.sorted()
        return {"scores": scores, "rows": rows, "columns": columns}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a saved ``state``."""
        self._floor, self._parts, self._count = -np.inf, [], 0
        self._add(state["scores"], state["rows"], state["columns"])

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """Keep the ``max_scores`` largest scores of several states."""
        self._floor, self._parts, self._count = -np.inf, [], 0
        for state in states:
            self._parts.append((state["scores"], state["rows"], state["columns"]))
            self._count += len(state["scores"])
        self._prune()


class Nearest:
    """Keeps the exact top k non-mates in the second set for each face of the first set.

    Args:
        faces: N, the number of faces in the first set.
        top_k: k, the number of non-mates to keep per face.

    Attributes:
        scores: (N, top_k) in descending order; −inf where a face has fewer than k non-mates.
        columns: (N, top_k) the non-mates' indices in the second set; −1 where a face has fewer.
    """

    def __init__(self, faces: int, top_k: int) -> None:
        self.scores = np.full((faces, top_k), -np.inf, np.float64)
        self.columns = np.full((faces, top_k), -1, np.int64)

    def take(self, block: Block) -> None:
        """Merge the block's scores into the top k of its rows."""
        rows = slice(block.row, block.row + len(block.scores))
        # Each row's k-th highest score so far; only higher scores can enter its top k.
        floor = self.scores[rows, -1]
        # For a single query, most blocks contain no score above its current top k.
        if len(floor) == 1 and float(block.run_maximum.max()) <= floor[0]:
            return
        values, columns = self._candidates(block, floor)
        if values.shape[1]:
            rows_to_merge = (values[:, 0] > -torch.inf).nonzero()[:, 0]
            self._merge_rows(
                rows_to_merge.cpu().numpy() + block.row,
                values[rows_to_merge].cpu().double().numpy(),
                columns[rows_to_merge].cpu().numpy() + block.column,
            )

    def _candidates(self, block: Block, floor: np.ndarray) -> tuple[Tensor, Tensor]:
        """(R, m) scores that may enter each row's top k, and (R, m) their columns in the block.

        Rows with fewer than m such scores are padded with −inf.
        """
        top_k = self.scores.shape[1]
        # Convert before testing for infinity, because the block's dtype may have a smaller range.
        host_floor = torch.from_numpy(floor).to(block.scores.dtype)
        device_floor = host_floor.to(block.scores.device, non_blocking=True)
        candidates = None if torch.isinf(host_floor).any() else block.above(device_floor[:, None])
        if candidates is None:
            # Some row has fewer than k scores so far, or too many runs have scores above the floor.
            values, columns = block.scores.topk(min(top_k, block.scores.shape[1]))
            return values, columns
        above, rows, columns = candidates
        counts = torch.bincount(rows, minlength=len(device_floor))
        # The candidates are ordered by row, so each row's values are adjacent. A candidate's
        # position counts from 0 within its row.
        position = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        values = device_floor.new_full((len(device_floor), int(counts.max())), -torch.inf)
        value_columns = torch.full(values.shape, -1, device=rows.device)
        values[rows, position], value_columns[rows, position] = above, columns
        return values, value_columns

    def _merge_rows(self, rows: np.ndarray, scores: np.ndarray, columns: np.ndarray) -> None:
        """Merge (R, m) scores and columns into the top k of (R,) rows."""
        all_scores = np.concatenate([self.scores[rows], scores], axis=1)
        all_columns = np.concatenate([self.columns[rows], columns], axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, : self.scores.shape[1]]
        self.scores[rows] = np.take_along_axis(all_scores, order, axis=1)
        self.columns[rows] = np.take_along_axis(all_columns, order, axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything kept so far."""
        return {"scores": self.scores.copy(), "columns": self.columns.copy()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a saved ``state``."""
        self.scores[:], self.columns[:] = state["scores"], state["columns"]

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """Keep each row's top k across several states."""
        self.restore(states[0])
        for state in states[1:]:
            self._merge_rows(np.arange(len(self.scores)), state["scores"], state["columns"])


class Genuine:
    """Keeps all genuine scores.

    Each score takes 20 bytes (a float32 score and two int64 indices), or 24 if the embeddings are
    float64.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def take(self, block: Block) -> None:
        """Keep the block's genuine scores."""
        if len(block.genuine):
            self._parts.append((block.genuine, block.genuine_rows, block.genuine_columns))

    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(G,) scores ordered by row and column, and their (G,) rows and (G,) columns."""
        if not self._parts:
            return np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
        scores, rows, columns = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((columns, rows))
        self._parts = [(scores[order], rows[order], columns[order])]
        return self._parts[0]

    def state(self) -> dict[str, np.ndarray]:
        """A copy of everything kept so far."""
        scores, rows, columns = self.sorted()
        return {"scores": scores, "rows": rows, "columns": columns}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a saved ``state``."""
        self.merge([state])

    def merge(self, states: Sequence[dict[str, np.ndarray]]) -> None:
        """Keep the scores of all states."""
        self._parts = [(state["scores"], state["rows"], state["columns"]) for state in states]
