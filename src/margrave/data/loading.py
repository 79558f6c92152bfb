"""Batches for training: which images when, and how workers read and augment them.

Every image depends on (seed, epoch, index) alone, so training resumed at any batch with any number
of workers sees exactly the images it would have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from margrave.data.augment import Augmentation
from margrave.data.contract import FaceImages
from margrave.data.decode import Fit, fit_image
from margrave.hardware import keep_freed_memory


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that could not be read: its index, its name and the reason."""

    index: int
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Batch:
    """What the training loop gets; B may be below the batch size, even 0.

    Attributes:
        images: (B, 3, size, size) uint8, RGB, channels last in memory; see ``normalise``.
        labels: (B,) int64.
        indices: (B,) int64, where each image stands in the training set.
        unreadable: the images that were dropped, and why.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    unreadable: tuple[Unreadable, ...] = ()

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by DataLoader(pin_memory=True)."""
        return Batch(
            self.images.pin_memory(),
            self.labels.pin_memory(),
            self.indices.pin_memory(),
            self.unreadable,
        )


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): in each epoch a new order, drawn from (seed, epoch) alone.

    All ranks draw the same order and share each step's images out as evenly as can be. Iterating
    gives the rest of the epoch from the position that ``start_at`` set; the position is the whole
    state, and means the same to any number of ranks.

    Args:
        length: number of images.
        batch_size: images per step, over all ranks.
        seed: of the orders.
        drop_last: leave out the images that do not fill a step; otherwise the last step is smaller,
            and a rank's part of it may be empty.
        rank: which of the ranks this is.
        world_size: how many there are.

    Raises:
        ValueError: too few images for one step, a rank outside the world.

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
        """Let the next iteration begin before this batch of this epoch."""
        if epoch < 0 or not 0 <= batch <= self.batches_per_epoch:
            raise ValueError(
                f"cannot start at epoch {epoch}, batch {batch}: an epoch has "
                f"{self.batches_per_epoch} batches; does the checkpoint belong to this data set?"
            )
        self.epoch, self.batch = epoch, batch

    def state(self, batch: int) -> dict[str, Any]:
        """What a checkpoint before this batch must hold beside the position: here nothing."""
        del batch
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what `state` told; `start_at` follows."""
        del state

    def __len__(self) -> int:
        return self.batches_per_epoch - self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        # The last word keeps this stream apart from the augmentation's: [seed, epoch, index].
        order = np.random.default_rng([self._seed, epoch, 0, 1]).permutation(self._length)
        for batch in range(self.batch, self.batches_per_epoch):
            step = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            mine = np.array_split(step, self._world_size)[self._rank]
            yield [(epoch, index) for index in mine.tolist()]


class ImageGenerators:
    """A random generator for each (epoch, index): one that counts, set to the image's own count.

    Args:
        seed: of all of them.

    >>> generators = ImageGenerators(seed=0)
    >>> first = generators.of(epoch=1, index=7).random()
    >>> other = generators.of(epoch=1, index=8).random()
    >>> generators.of(epoch=1, index=7).random() == first != other
    True
    """

    def __init__(self, seed: int) -> None:
        self._counting = np.random.Philox(seed=np.random.SeedSequence([seed, 4]))
        self._state: Any = self._counting.state
        self._generator = np.random.Generator(self._counting)

    def of(self, epoch: int, index: int) -> np.random.Generator:
        """The image's; it is the next image's from the next call on."""
        # Making a generator anew costs as much as a fifth of decoding.
        self._state["state"]["counter"][:] = 0, 0, index, epoch
        self._counting.state = self._state
        return self._generator


@runtime_checkable
class Prefetching(Protocol):
    """Images that are better fetched together."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Get ready to read these."""
        ...


class TrainingImages(Dataset[Batch]):
    """Turns (epoch, index) pairs into batches; an image's changes hang on (seed, epoch, index).

    Args:
        images: where images and labels come from.
        size: side of the square that images are fitted to.
        augmentation: how to change them; None leaves them alone.
        seed: of the augmentation.
        fit: how an image that is not square becomes so, see ``fit_image``.
        cached: read every image now and keep it in memory that all workers share
            (3 · size² bytes each).
        progress: called with (images read, images) while caching.
    """

    def __init__(
        self,
        images: FaceImages,
        size: int = 112,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        fit: Fit = "crop",
        cached: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.images = images
        self.size = size
        self.augmentation = augmentation
        self.fit: Fit = fit
        self._generators = ImageGenerators(seed)
        self._prefetching = images if isinstance(images, Prefetching) else None
        self._cache: torch.Tensor | None = None
        self._unreadable: dict[int, Unreadable] = {}
        if cached:
            self._fill_cache(progress or (lambda done, total: None))

    @property
    def is_cached(self) -> bool:
        """Whether every image is in memory."""
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
        """The images that can be read, as DataLoader asks for a batch."""
        if self._cache is None and self._prefetching is not None:
            self._prefetching.prefetch([index for _, index in positions])
        # A batch is megabytes, whose pages would be zeroed anew each time.
        keep_freed_memory()
        images = torch.empty((len(positions), self.size, self.size, 3), dtype=torch.uint8)
        pixels, indices, unreadable = images.numpy(), [], []
        for epoch, index in positions:
            image = self._read(index)
            if isinstance(image, Unreadable):
                unreadable.append(image)
                continue
            if self.augmentation is not None:
                image = self.augmentation(image, self._generators.of(epoch, index))
            pixels[len(indices)] = image
            indices.append(index)
        return Batch(
            images[: len(indices)].permute(0, 3, 1, 2),
            torch.from_numpy(np.asarray(self.images.labels[indices], np.int64)),
            torch.tensor(indices, dtype=torch.int64),
            tuple(unreadable),
        )

    def _read(self, index: int) -> np.ndarray | Unreadable:
        """The (size, size, 3) image before augmentation."""
        if index in self._unreadable:
            return self._unreadable[index]
        if self._cache is not None:
            return self._cache[index].numpy()
        try:
            return fit_image(self.images.read(index), self.size, self.fit)
        except ValueError as error:
            return Unreadable(index, self.images.name(index), str(error))


def normalise(
    images: torch.Tensor,
    mean: float | Sequence[float] = 0.5,
    deviation: float | Sequence[float] = 0.5,
) -> torch.Tensor:
    """(images / 255 − mean) / deviation, from (B, 3, H, W) uint8 to float32 on the same device.

    Args:
        images: pixels in 0..255.
        mean: of pixels in 0..1, one number or one per channel.
        deviation: likewise; 0.5 and 0.5 give [−1, 1].

    >>> normalise(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2)).flatten().tolist()
    [-1.0, 1.0]
    """
    if not images.is_cpu or not len(images):
        table = _table_on(images.device, _numbers(mean), _numbers(deviation))
        channels = torch.arange(images.shape[1], device=images.device)[:, None, None]
        return table.expand(256, images.shape[1])[images.long(), channels]
    table = _table(mean, deviation)
    # Looking up is one pass where torch's conversion and arithmetic are four.
    keep_freed_memory()
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    shape = (-1, 3) if table.shape[1] == 3 else (-1, images.shape[3] * images.shape[1])
    rows = pixels.reshape(len(pixels) * images.shape[2], *shape)
    found = cv2.LUT(rows, table.numpy()[None])
    return torch.from_numpy(found.reshape(pixels.shape)).permute(0, 3, 1, 2)


def _table(mean: float | Sequence[float], deviation: float | Sequence[float]) -> torch.Tensor:
    """(256, 1) or (256, channels) what becomes of each pixel value."""
    centre, spread = (torch.as_tensor(value, dtype=torch.float32) for value in (mean, deviation))
    return (torch.arange(256)[:, None] / 255 - centre) / spread


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)


@lru_cache(maxsize=16)
def _table_on(
    device: torch.device, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> torch.Tensor:
    """The table on a device: made here, so that all give the same numbers, and copied once."""
    # Inference mode's tensors would be of no use to training.
    with torch.inference_mode(False):
        return _table(mean, deviation).to(device)


def training_loader(
    images: TrainingImages, sampler: EpochSampler, workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """Iterate once per epoch, after ``sampler.start_at``; each item is a ``Batch``.

    Args:
        images: the training set.
        sampler: which images when.
        workers: processes that read ahead; 0 reads in the training process.
        pin_memory: hand over page-locked tensors, for an accelerator.
    """
    return DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]
        worker_init_fn=_prepare_worker,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # Its own generator, or every epoch would advance torch's global one.
        generator=torch.Generator(),
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _prepare_worker(worker: int) -> None:
    # Ctrl-C goes to the whole process group; the training process alone decides how to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
