from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

from margrave.data import (
    Augmentation,
    Batch,
    EpochSampler,
    TrainingImages,
    Unreadable,
    normalize,
    training_loader,
)

SIZE = 16


class Images:
    """Twenty small images, of which some cannot be read."""

    def __init__(self, broken: tuple[int, ...] = (), total: int = 20) -> None:
        self.labels = np.arange(total, dtype=np.int64) % 5
        self.class_names = tuple("abcde")
        self.broken = broken
        self.reads = 0

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, index: int) -> np.ndarray:
        self.reads += 1
        if index in self.broken:
            raise ValueError(f"image {index} is broken")
        return np.random.default_rng(index).integers(0, 256, (20, 24, 3), np.uint8)


def _flat(sampler: EpochSampler) -> list[int]:
    return [index for batch in sampler for _, index in batch]


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    sampler = EpochSampler(20, 6, seed=3, drop_last=False)
    first = _flat(sampler)
    assert sorted(first) == list(range(20)) and _flat(sampler) == first
    assert [len(batch) for batch in sampler] == [6, 6, 6, 2] and len(sampler) == 4
    sampler.start_at(1)
    assert _flat(sampler) != first
    assert len(EpochSampler(20, 6, seed=3)) == 3
    assert first != _flat(EpochSampler(20, 6, seed=4, drop_last=False))


def test_resuming_continues_the_order() -> None:
    sampler = EpochSampler(20, 4, seed=0)
    sampler.start_at(2)
    full = list(sampler)
    for batch in range(6):
        sampler.start_at(2, batch)
        assert list(sampler) == full[batch:] and len(sampler) == 5 - batch


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_step_out(world_size: int, drop_last: bool) -> None:
    ranks = [
        list(EpochSampler(20, 7, 0, drop_last, rank, world_size)) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = [index for batches in ranks for batch in batches for _, index in batch]
    assert len(set(together)) == len(together)
    assert len(together) == (14 if drop_last else 20)
    one = list(EpochSampler(20, 7, 0, drop_last))
    for step, full in enumerate(one):
        assert [position for batches in ranks for position in batches[step]] == full


def test_sampler_mistakes() -> None:
    with pytest.raises(ValueError, match=r"20 images do not fill one step .* 21"):
        EpochSampler(20, 21, 0, world_size=2)
    with pytest.raises(ValueError, match="rank = 2"):
        EpochSampler(20, 4, 0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="an epoch has 5 batches"):
        EpochSampler(20, 4, 0).start_at(0, 6)


def _batches(workers: int, cached: bool = False, start: int = 0) -> list[Batch]:
    images = TrainingImages(Images((7,)), SIZE, Augmentation.adaface(), seed=5, cached=cached)
    sampler = EpochSampler(20, 4, seed=1)
    sampler.start_at(3, start)
    return list(training_loader(images, sampler, workers))


def _same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.indices, other.indices)
        and one.unreadable == other.unreadable
    )


def test_batches_depend_on_nothing_but_seed_epoch_and_index() -> None:
    state = torch.random.get_rng_state()
    full = _batches(workers=0)
    for others in (_batches(2), _batches(0, cached=True), _batches(1, cached=True, start=2)):
        expected = full[-len(others) :]
        assert all(_same(one, other) for one, other in zip(expected, others, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    total = sum(len(batch.images) for batch in full)
    assert total == 19 and sum(len(batch.unreadable) for batch in full) == 1


def test_persistent_workers_follow_the_sampler() -> None:
    images = TrainingImages(Images(), SIZE, Augmentation(), seed=0)
    sampler = EpochSampler(20, 5, seed=0)
    loader = training_loader(images, sampler, workers=1)
    for epoch in (0, 1):
        sampler.start_at(epoch)
        plain = training_loader(images, sampler)
        assert all(_same(a, b) for a, b in zip(loader, plain, strict=True))


def test_samples_are_channels_first_and_labeled() -> None:
    images = TrainingImages(Images(), SIZE)
    batch = images.__getitems__([(0, 3), (0, 9)])
    assert batch.images.shape == (2, 3, SIZE, SIZE) and batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [3, 4] and batch.indices.tolist() == [3, 9]
    assert batch.labels.dtype == batch.indices.dtype == torch.int64


def test_unreadable_images_are_handed_on() -> None:
    images = TrainingImages(Images((0, 1)), SIZE)
    batch = images.__getitems__([(0, index) for index in range(3)])
    assert batch.indices.tolist() == [2]
    assert batch.unreadable[1] == Unreadable(1, "image 1", "image 1 is broken")
    empty = images[0, 0]
    assert empty.images.shape == (0, 3, SIZE, SIZE) and len(empty.unreadable) == 1
    assert normalize(empty.images).shape == (0, 3, SIZE, SIZE)
    assert images.__getitems__([]).labels.shape == (0,)


def test_caching_reads_once_and_reports() -> None:
    source, seen = Images((4,)), []
    images = TrainingImages(
        source, SIZE, cached=True, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 20) for done in range(1, 21)]
    plain = TrainingImages(Images((4,)), SIZE)
    for index in range(20):
        assert _same(images[0, index], plain[0, index])
    assert source.reads == 20


def test_augmenting_leaves_the_cache_alone() -> None:
    images = TrainingImages(Images(), SIZE, Augmentation.adaface(crop=1.0), cached=True)
    once, again = (images.__getitems__([(0, index) for index in range(20)]) for _ in range(2))
    assert torch.equal(once.images, again.images)


@pytest.mark.parametrize("mean", [0.5, [0.5, 0.4, 0.3]])
def test_normalize(mean: float | list[float]) -> None:
    pixels = torch.arange(0, 240, 5, dtype=torch.uint8).reshape(1, 3, 4, 4)
    normalized = normalize(pixels, mean, 0.25)
    offset = torch.tensor(mean).reshape(-1, 1, 1)
    torch.testing.assert_close(normalized, (pixels / 255 - offset) / 0.25)
    assert normalized.dtype == torch.float32 and pixels.dtype == torch.uint8


class Interrupting(Images):
    """Sends the reading process Ctrl-C while it reads."""

    def read(self, index: int) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGINT)
        return super().read(index)


def test_workers_ignore_interrupts() -> None:
    images = TrainingImages(Interrupting(), SIZE)
    batches = list(training_loader(images, EpochSampler(20, 5, 0), workers=1))
    assert sum(len(batch.images) for batch in batches) == 20
