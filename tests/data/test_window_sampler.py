"""Pieces distributed to ranks and workers: everything once, whatever happens in between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from margrave.data import WindowSampler

Layout = tuple[int, int]


def pieces_of(sizes: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])


def deliver(
    pieces: np.ndarray,
    layout: Layout,
    start: int,
    end: int | None,
    state: dict,
    batch_size: int = 6,
    drop_last: bool = False,
    window: int = 5,
) -> tuple[list[int], dict]:
    """What all ranks of a layout get from one batch to another, and the state then."""
    delivered: list[int] = []
    for rank in range(layout[0]):
        sampler = WindowSampler(
            pieces, window, batch_size, 1, drop_last,
            rank=rank, world_size=layout[0], workers=layout[1],
        )  # fmt: skip
        if state:
            sampler.resume(state)
        sampler.start_at(2, start)
        batches = list(sampler)
        if end is not None:
            batches = batches[: end - start]
        delivered += [index for batch in batches for epoch, index in batch]
        stop = start + len(batches)
    return delivered, sampler.state(stop)


def sampler_of(pieces: np.ndarray, layout: Layout, rank: int) -> WindowSampler:
    return WindowSampler(
        pieces, 5, 6, 1, False, rank=rank, world_size=layout[0], workers=layout[1]
    )  # fmt: skip


def batches_of(pieces: np.ndarray, layout: Layout, rank: int) -> list[list[tuple[int, int]]]:
    sampler = sampler_of(pieces, layout, rank)
    sampler.start_at(2)
    return list(sampler)


layouts = some.tuples(some.integers(1, 4), some.integers(1, 3))
sizes = some.lists(some.integers(1, 9), min_size=2, max_size=12).filter(lambda s: sum(s) >= 12)


@given(sizes, some.lists(layouts, min_size=1, max_size=4), some.data())
def test_every_image_once_through_any_changes_of_ranks_and_workers(
    sizes: list[int], layouts: list[Layout], data: some.DataObject
) -> None:
    pieces = pieces_of(sizes)
    batches = -(-sum(sizes) // 6)
    ends = sorted(data.draw(some.lists(some.integers(0, batches), min_size=3, max_size=3)))
    delivered: list[int] = []
    state, start = {}, 0
    for layout, end in zip(layouts, [*ends[: len(layouts) - 1], None], strict=False):
        got, state = deliver(pieces, layout, start, end, state)
        delivered += got
        start = batches if end is None else end
    assert sorted(delivered) == list(range(sum(sizes)))


@given(sizes, layouts)
def test_resuming_changes_nothing(sizes: list[int], layout: Layout) -> None:
    pieces = pieces_of(sizes)
    for rank in range(layout[0]):
        full = batches_of(pieces, layout, rank)
        for cut in range(len(full) + 1):
            sampler = sampler_of(pieces, layout, rank)
            sampler.resume(sampler.state(cut))
            sampler.start_at(2, cut)
            assert full[:cut] + list(sampler) == full


def test_only_whole_steps_with_drop_last() -> None:
    delivered, _ = deliver(pieces_of([7, 7, 7]), (2, 2), 0, None, {}, batch_size=4, drop_last=True)
    assert len(delivered) == len(set(delivered)) == 20


def test_each_piece_goes_to_one_worker_but_for_the_seams() -> None:
    pieces = pieces_of([50] * 40)
    touched = []
    for rank in range(2):
        sampler = WindowSampler(pieces, 200, 20, 0, rank=rank, world_size=2, workers=2)
        batches = [[index for _, index in batch] for batch in sampler]
        for worker in range(2):
            own = np.concatenate(batches[worker::2])
            touched.append(set((own // 50).tolist()))
    assert sum(map(len, touched)) <= 40 + 3
    assert max(map(len, touched)) <= 11


def test_epochs_and_windows_are_shuffled() -> None:
    pieces = pieces_of([50] * 40)
    sampler = WindowSampler(pieces, 200, 20, 0)
    first = [index for batch in sampler for _, index in batch]
    sampler.start_at(1)
    second = [index for batch in sampler for _, index in batch]
    assert sorted(first) == sorted(second) and first != second
    # A window of four pieces, none of them in order.
    assert len({index // 50 for index in first[:200]}) == 4
    assert np.diff(first[:200]).tolist().count(1) < 20


def test_another_epoch_forgets_the_segments_of_the_last() -> None:
    sampler = WindowSampler(pieces_of([9, 9]), 6, 6, 0)
    sampler.resume(sampler.state(0) | {"segments": [[3, 2, 1]]})
    sampler.start_at(0, 1)
    assert sampler.state(2)["segments"] == [[3, 2, 1], [1, 1, 2]]
    sampler.start_at(1)
    assert sampler.state(0)["segments"] == []


def test_a_state_of_other_pieces_or_none_at_all_is_refused() -> None:
    sampler = WindowSampler(pieces_of([9, 9]), 6, 6, 0)
    good = sampler.state(1)
    for other in (WindowSampler(pieces_of([8, 10]), 6, 6, 0), WindowSampler([0, 9, 18], 5, 6, 0)):
        with pytest.raises(ValueError, match=r"restore the original data\.train"):
            sampler.resume(other.state(1))
    for segments in (
        5,
        [["a", 1, 1]],
        [[1, 10**9, 1]],
        [[1, 1, 2], [2, 1, 2]],
        [[1, 1]],
        [[0, 1, 1]],
    ):
        with pytest.raises(ValueError, match="the checkpoint is damaged"):
            sampler.resume(good | {"segments": segments})
    sampler.resume(good | {"segments": [[1, 1, 2]]})
    sampler.resume({"pieces": good["pieces"], "legs": [[1, 1, 2]]})
    with pytest.raises(ValueError, match="segments end at batch 2, after batch 1"):
        sampler.start_at(0, 1)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="18 images do not fill one step"):
        WindowSampler(pieces_of([9, 9]), 6, 20, 0)
