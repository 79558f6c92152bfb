"""Training batches: choose the order of the images, read them in workers and augment them.

Each augmented image depends only on (seed, epoch, index), so a run resumed at any batch, with
any number of workers, reads exactly the same images as an uninterrupted run.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from margrave.data.augment import Augmentation
from margrave.data.decode import Fit, fit_image
from margrave.data.sources import ImageSource, open_source
from margrave.hardware import keep_freed_memory


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be read: its index in the data set, its name and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of B training images; B may be smaller than the batch size, even 0.

    Attributes:
        images: (B, 3, size, size) uint8, RGB, channels last in memory; see ``normalize``.
        labels: (B,) int64, class of each image.
        indices: (B,) int64, index of each image in the training set.
        unreadable: images that were dropped because they could not be read.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    unreadable: tuple[Unreadable, ...] = ()

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; called by DataLoader(pin_memory=True)."""
        return Batch(
            self.images.pin_memory(),
            self.labels.pin_memory(),
            self.indices.pin_memory(),
            self.unreadable,
        )


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of (epoch, index); each epoch's order depends only on (seed, epoch).

    All ranks draw the same order and split each step's images as evenly as possible. Iteration
    yields the batches of one epoch from the position set by ``start_at``. The position (epoch,
    batch) is the entire state and does not depend on the number of ranks.

    Args:
        length: number of images.
        batch_size: images per step, over all ranks.
        seed: seeds the order of every epoch.
        drop_last: drop the images at the end of an epoch that do not fill a step; otherwise the
            last step is smaller, and a rank's part of it may be empty.
        rank: rank of this process.
        world_size: number of ranks.

    Raises:
        ValueError: too few images for one step, batch_size < 1, or rank not in 0..world_size − 1.

    >>> sampler = EpochSampler(10, batch_size=4, seed=0)
    >>> sampler.start_at(epoch=3, batch=1)
    >>> [[epoch for epoch, index in batch] for batch in sampler]
    [[3, 3, 3, 3]]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size = {batch_size}, rank = {rank}, world_size = {world_size}; batches "
                "need at least one image, and ranks run from 0 to world_size - 1"
            )
        if length < (batch_size if drop_last else 1):
            raise ValueError(
                f"{length} images do not fill one step of batch_size = {batch_size}; "
                "lower training.batch_size or add images"
            )
        self.batches_per_epoch = length // batch_size if drop_last else -(-length // batch_size)
        self.epoch = 0
        self.batch = 0
        self._length, self._batch_size, self._seed = length, batch_size, seed
        self._rank, self._world_size = rank, world_size

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Set the position: the next iteration starts with this batch of this epoch."""
        if epoch < 0 or not 0 <= batch <= self.batches_per_epoch:
            raise ValueError(
                f"cannot start at epoch {epoch}, batch {batch}: an epoch has "
                f"{self.batches_per_epoch} batches; check that the checkpoint belongs to this "
                "data set"
            )
        self.epoch, self.batch = epoch, batch

    def state(self, batch: int) -> dict[str, Any]:
        """The state that a checkpoint before this batch stores besides the position; empty here."""
        del batch
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; call `start_at` afterwards."""
        del state

    def __len__(self) -> int:
        return self.batches_per_epoch - self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        # The final 1 makes this random stream differ from others with the same seed. The 0 has no
        # meaning, but another number would change the order of every epoch.
        order = np.random.default_rng([self._seed, epoch, 0, 1]).permutation(self._length)
        for batch in range(self.batch, self.batches_per_epoch):
            step_indices = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            rank_indices = np.array_split(step_indices, self._world_size)[self._rank]
            yield [(epoch, index) for index in rank_indices.tolist()]


class ImageGenerators:
    """Provides a random generator for each (epoch, index).

    A single Philox generator serves all images: its counter is set from (epoch, index).

    Args:
        seed: seeds all generators.

    >>> generators = ImageGenerators(seed=0)
    >>> first = generators.for_image(epoch=1, index=7).random()
    >>> other = generators.for_image(epoch=1, index=8).random()
    >>> generators.for_image(epoch=1, index=7).random() == first != other
    True
    """

    def __init__(self, seed: int) -> None:
        # The 4 makes this random stream differ from others with the same seed.
        self._bit_generator = np.random.Philox(seed=np.random.SeedSequence([seed, 4]))
        self._state: Any = self._bit_generator.state
        self._generator = np.random.Generator(self._bit_generator)

    def for_image(self, epoch: int, index: int) -> np.random.Generator:
        """The image's generator; valid until the next call of `for_image`."""
        # Creating a new generator would take a fifth of the time that decoding an image takes.
        # The first two of the four words count up as random numbers are drawn.
        self._state["state"]["counter"][:] = 0, 0, index, epoch
        self._bit_generator.state = self._state
        return self._generator


class TrainingImages(Dataset[Batch]):
    """Maps (epoch, index) pairs to batches; augmentation depends only on (seed, epoch, index).

    Args:
        images: labeled images, in any form that `open_source` accepts.
        size: side of the images in pixels.
        augmentation: random changes of images, or None.
        seed: seeds the augmentation.
        fit: how to fit images of other sizes, see ``fit_image``.
        cached: read all images now and keep them in shared memory, which all workers use
            (3 · size² bytes per image).
        progress: called with (images read, total images) while caching.
    """

    def __init__(
        self,
        images: ImageSource,
        size: int = 112,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        fit: Fit = "crop",
        cached: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.images = open_source(images, labeled=True)
        self.size = size
        self.augmentation = augmentation
        self.fit: Fit = fit
        self._generators = ImageGenerators(seed)
        self._cache: torch.Tensor | None = None
        self._unreadable: dict[int, Unreadable] = {}
        if cached:
            self._fill_cache(progress or (lambda done, total: None))

    @property
    def is_cached(self) -> bool:
        """Whether every image is cached in memory."""
        return self._cache is not None

    def _fill_cache(self, progress: Callable[[int, int], None]) -> None:
        total = len(self.images)
        cache = torch.zeros((total, self.size, self.size, 3), dtype=torch.uint8).share_memory_()
        pixels = cache.numpy()
        for index in range(total):
            image = self._read(index)
            if isinstance(image, Unreadable):
                self._unreadable[index] = image
            else:
                pixels[index] = image
            progress(index + 1, total)
        self._cache = cache

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: tuple[int, int]) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> Batch:
        """One batch, without the images that cannot be read; called by DataLoader."""
        if self._cache is None:
            self.images.prefetch([index for _, index in positions])
        # Reuse freed memory: the operating system would zero new memory for every batch.
        keep_freed_memory()
        images = torch.empty((len(positions), self.size, self.size, 3), dtype=torch.uint8)
        pixels, indices, unreadable = images.numpy(), [], []
        for epoch, index in positions:
            image = self._read(index)
            if isinstance(image, Unreadable):
                unreadable.append(image)
                continue
            if self.augmentation is not None:
                image = self.augmentation(image, self._generators.for_image(epoch, index))
            pixels[len(indices)] = image
            indices.append(index)
        return Batch(
            images[: len(indices)].permute(0, 3, 1, 2),
            torch.from_numpy(np.asarray(self.images.labels[indices], np.int64)),
            torch.tensor(indices, dtype=torch.int64),
            tuple(unreadable),
        )

    def _read(self, index: int) -> np.ndarray | Unreadable:
        """The (size, size, 3) image before augmentation, or why it cannot be read."""
        if index in self._unreadable:
            return self._unreadable[index]
        if self._cache is not None:
            return self._cache[index].numpy()
        try:
            return fit_image(self.images.read(index), self.size, self.fit)
        except ValueError as error:
            return Unreadable(index, self.images.name(index), str(error))


def normalize(
    images: torch.Tensor,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
) -> torch.Tensor:
    """Compute (images / 255 − mean) / std as float32, on the device of the images.

    Args:
        images: (B, C, H, W) uint8.
        mean: mean of the pixels after division by 255; one number, or one per channel.
        std: standard deviation, likewise. A mean and std of 0.5 map the pixels to [−1, 1].

    >>> normalize(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)).flatten().tolist()
    [-1.0, 1.0]
    """
    # OpenCV's lookup, below, needs images on the CPU, and at least one.
    if not images.is_cpu or not len(images):
        table = _lookup_table_on(images.device, _as_tuple(mean), _as_tuple(std))
        channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
        return table.expand(256, images.shape[1])[images.long(), channels]
    table = _lookup_table(mean, std)
    # A lookup table takes one pass over the pixels; torch's conversion and arithmetic take four.
    keep_freed_memory()
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    # A table with one column per channel needs the channels as the last axis. A table with one
    # column allows any shape.
    row_shape = (-1, 3) if table.shape[1] == 3 else (-1, images.shape[3] * images.shape[1])
    pixel_rows = pixels.reshape(len(pixels) * images.shape[2], *row_shape)
    normalized = cv2.LUT(pixel_rows, table.numpy()[None])
    return torch.from_numpy(normalized.reshape(pixels.shape)).permute(0, 3, 1, 2)


def _lookup_table(mean: float | Sequence[float], std: float | Sequence[float]) -> torch.Tensor:
    """(256, 1) or (256, channels) table that maps each pixel value to its normalized value."""
    offset, scale = (torch.as_tensor(value, dtype=torch.float32) for value in (mean, std))
    return (torch.arange(256)[:, None] / 255 - offset) / scale


def _as_tuple(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


@lru_cache(maxsize=16)
def _lookup_table_on(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> torch.Tensor:
    """The lookup table on a device, computed on the CPU so that all devices use the same values."""
    # The table is cached, and training cannot use tensors created in inference mode.
    with torch.inference_mode(False):
        return _lookup_table(mean, std).to(device)


def training_loader(
    images: TrainingImages, sampler: EpochSampler, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Create a DataLoader of ``Batch``; call ``sampler.start_at`` before iterating over an epoch.

    Args:
        images: the training set.
        sampler: the order of images.
        workers: number of reader processes; with 0, the training process reads the images.
        pin_memory: return tensors in page-locked memory, from which copies to a GPU are faster.
    """
    return DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_unchanged,  # pyright: ignore[reportArgumentType]
        worker_init_fn=_prepare_worker,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Without a generator, the DataLoader would advance torch's global generator every epoch.
        generator=torch.Generator(),
    )


def _unchanged(batch: Batch) -> Batch:
    """Collate function that does nothing, because `TrainingImages` returns complete batches."""
    return batch


def _prepare_worker(worker: int) -> None:
    # Ctrl-C reaches every process of the group, but only the training process should handle it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread per worker is enough, because the workers run in parallel. 0 disables threads.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
