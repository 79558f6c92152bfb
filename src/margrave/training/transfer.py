"""Transfers between the host and the device in which neither waits for the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from margrave.data import Batch


@dataclass(frozen=True, eq=False)
class PlacedBatch:
    """A batch on its device.

    Attributes:
        host: the batch as the loader returned it, in host memory.
        images: (B, 3, size, size) uint8, as in `Batch`.
        labels: (B,) classes, as in `Batch`.
        indices: (B,) image indices, as in `Batch`.
    """

    host: Batch
    images: Tensor
    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.host.labels)


class PrefetchedBatches:
    """A loader's batches, each copied to the device during the training step of the previous one.

    Copies use a separate stream if the device has streams. The tensors that `next` returns are
    ready for use on the current stream.

    Args:
        batches: the loader's batches of one epoch.
        device: the device to copy them to.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._batches, self._device = iter(batches), device
        self._module: Any = torch.get_device_module(device)
        has_streams = device.type != "cpu" and hasattr(self._module, "Stream")
        self._stream = self._module.Stream() if has_streams else None
        self._next_batch: PlacedBatch | None = self._place(next(self._batches, None))

    def peek(self) -> Batch | None:
        """The batch that `next` would return, in host memory.

        None at the end, and between `next` and `fetch`.
        """
        return None if self._next_batch is None else self._next_batch.host

    def next(self) -> PlacedBatch | None:
        """Return the prefetched batch, or None at the end; call `fetch` before the next call."""
        batch, self._next_batch = self._next_batch, None
        if batch is not None and self._stream is not None:
            current = self._module.current_stream()
            current.wait_stream(self._stream)
            # The tensors' memory must not be reused before the current stream is done with them.
            for tensor in (batch.images, batch.labels, batch.indices):
                tensor.record_stream(current)
        return batch

    def fetch(self) -> None:
        """Read the next batch and start its copy; call this while the device is busy."""
        self._next_batch = self._place(next(self._batches, None))

    def _place(self, batch: Batch | None) -> PlacedBatch | None:
        if batch is None:
            return None
        tensors = (batch.images, batch.labels, batch.indices)
        if self._stream is None:
            return PlacedBatch(batch, *(self._copy(tensor) for tensor in tensors))
        with self._module.stream(self._stream):
            return PlacedBatch(batch, *(self._copy(tensor) for tensor in tensors))

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)


class Readback:
    """A copy of numbers from the device to the host, started without blocking.

    >>> Readback(torch.tensor([1.0, 2.0])).wait()
    [1.0, 2.0]
    """

    def __init__(self, values: Tensor) -> None:
        self._event = None
        if not values.is_cpu:
            module: Any = torch.get_device_module(values.device)
            values = values.to("cpu", non_blocking=True)
            self._event = module.Event()
            self._event.record()
        self._values = values

    def wait(self) -> list[float]:
        """Wait until the numbers have arrived, and return them."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()
