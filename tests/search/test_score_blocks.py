from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from margrave.distributed import World
from margrave.search import score_blocks
from margrave.search.collectors import Genuine, Nearest, Tail
from margrave.search.score_blocks import Comparison, sweep, unit_block


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_blocks, "ROWS_PER_BLOCK", 17)
    monkeypatch.setattr(score_blocks, "COLUMNS_PER_BLOCK", 29)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _faces(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.standard_normal((count, 8)), generator.integers(-1, 20, count)


def _collectors(count: int, keep: int = 40, top_k: int = 5) -> dict:
    return {"tail": Tail(keep), "nearest": Nearest(count, top_k), "genuine": Genuine()}


@pytest.mark.parametrize("memory", [1, 8 * 4 * 40, 1 << 20])
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("keep", [1, 40, 10_000_000])
def test_collectors_keep_what_the_whole_matrix_shows(memory: int, itself: bool, keep: int) -> None:
    first, labels = _faces(0, 150)
    second, others = (first, labels) if itself else _faces(1, 111)
    comparison = Comparison(first, labels, *(() if itself else (second, others)))
    collectors = _collectors(len(first), keep)
    sweep(comparison, collectors, memory=memory)

    scores = _unit(first) @ _unit(second).T
    same = (labels[:, None] == others) & (labels[:, None] >= 0)
    counted = np.triu(np.ones_like(same), 1) if itself else np.ones_like(same)
    impostor = np.where(counted & ~same, scores, -np.inf)

    result, rows, columns = collectors["tail"].sorted()
    expected = np.sort(scores[counted & ~same])[::-1][:keep]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(impostor[rows, columns], result, rtol=0, atol=1e-14)
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == len(rows)

    result, rows, columns = collectors["genuine"].sorted()
    expected_rows, expected_columns = np.nonzero(counted & same)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(columns, expected_columns)
    np.testing.assert_allclose(result, scores[counted & same], rtol=0, atol=1e-14)

    top = -np.sort(-impostor, axis=1)[:, :5]
    np.testing.assert_allclose(collectors["nearest"].scores, top, rtol=0, atol=1e-14)


@pytest.mark.parametrize("stop", [0, 1, 3, 10**6])
def test_interrupted_and_resumed_is_the_same_to_the_digit(stop: int) -> None:
    first, labels = _faces(0, 150)
    comparison = Comparison(first, labels)
    full = _collectors(150)
    sweep(comparison, full, memory=8 * 4 * 40)

    class Stopped(Exception):
        pass

    kept: list[dict] = []

    def save_state(output) -> None:
        kept.append(output())
        if len(kept) > stop:
            raise Stopped

    broken = _collectors(150)
    with contextlib.suppress(Stopped):
        sweep(comparison, broken, memory=8 * 4 * 40, save_state=save_state)
    resumed = _collectors(150)
    seen: list[tuple[int, int]] = []
    sweep(
        comparison,
        resumed,
        memory=8 * 4 * 40,
        state=kept[-1],
        progress=lambda done, total: seen.append((done, total)),
    )
    for name, collector in full.items():
        for key, value in collector.state().items():
            np.testing.assert_array_equal(resumed[name].state()[key], value)
    assert seen[-1] == (150 * 149 // 2, 150 * 149 // 2)


def test_ranks_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    first, labels = _faces(0, 150)
    second, others = _faces(1, 111)
    comparison = Comparison(first, labels, second, others)
    full = _collectors(150)
    sweep(comparison, full, memory=8 * 4 * 40)
    states: list[dict] = []

    def gather(state: dict, world: World) -> list[dict]:
        states.append(state)
        return states

    monkeypatch.setattr(score_blocks, "gather_objects", gather)
    for rank in range(3):
        parts = _collectors(150)
        sweep(comparison, parts, memory=8 * 4 * 40, world=World(rank, 3))
    for name, collector in full.items():
        for key, value in collector.state().items():
            np.testing.assert_array_equal(parts[name].state()[key], value)


def test_rows_without_direction_are_named() -> None:
    rows = np.ones((5, 3), np.float32)
    rows[3] = 0
    with pytest.raises(ValueError, match=r"embeddings 3 are zero"):
        unit_block(rows, 0, 5)
    with pytest.raises(ValueError, match="embeddings have shape"):
        Comparison(rows, np.zeros(5, int), np.ones((4, 2)))
    with pytest.raises(ValueError, match="labels"):
        Comparison(rows, np.zeros(4, int))


def test_mapped_files_are_read_alike(tmp_path: Path) -> None:
    first, labels = _faces(0, 150)
    np.save(tmp_path / "faces.npy", first.astype(np.float32))
    mapped = np.load(tmp_path / "faces.npy", mmap_mode="r")
    kept = []
    for rows in (mapped, np.array(mapped)):
        collectors = _collectors(150)
        sweep(Comparison(rows, labels), collectors, memory=1)
        kept.append(collectors["tail"].sorted()[0])
    np.testing.assert_array_equal(*kept)


def test_a_set_may_be_compared_with_itself_under_other_labels() -> None:
    first, labels = _faces(0, 150)
    result = []
    for second in (first, first.copy()):
        nearest = Nearest(150, 3)
        sweep(Comparison(first, labels, second, labels + 100), {"nearest": nearest}, memory=1)
        result.append(nearest.scores)
    np.testing.assert_array_equal(*result)


def test_devices_that_are_not_there_are_named() -> None:
    first, labels = _faces(0, 20)
    with pytest.raises(ValueError, match="device = 'cud' is not available here"):
        sweep(Comparison(first, labels), {}, device="cud")
