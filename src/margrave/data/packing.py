"""Images and pairs from anywhere into the files that others read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from margrave.data.contract import FaceImages, ReadableImages
from margrave.data.decode import Fit, decode_image, fit_image
from margrave.data.pair_lists import PairList
from margrave.data.pairs_bin import write_pairs_bin
from margrave.data.record_images import write_record_images

AHEAD = 64
"""Images that are read before their turn."""
QUALITY = 95

Progress = Callable[[int, int], None]


def packed_bytes(
    images: ReadableImages, index: int, size: int, fit: Fit = "crop", quality: int = QUALITY
) -> bytes:
    """An image's file as it is, where it is a JPEG or PNG of the size; else a JPEG made to be.

    Raises:
        ValueError: the image cannot be read.
    """
    whole = getattr(images, "read_bytes", None)
    if whole is not None:
        content: bytes = whole(index)
        image = decode_image(content, images.name(index))
        if image.shape[:2] == (size, size) and content[:2] in (b"\xff\xd8", b"\x89P"):
            return content
    else:
        image = images.read(index)
    fitted = cv2.cvtColor(fit_image(image, size, fit), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", fitted, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def in_order(
    prepare: Callable[[int], bytes], indices: Iterable[int], workers: int
) -> Iterator[tuple[int, bytes | ValueError]]:
    """Prepared images, or why not, in order, read by several threads ahead of time."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[int, Future[bytes]]] = deque()

        def next_one() -> tuple[int, bytes | ValueError]:
            index, future = waiting.popleft()
            try:
                return index, future.result()
            except ValueError as error:
                return index, error

        for index in indices:
            waiting.append((index, pool.submit(prepare, index)))
            if len(waiting) >= AHEAD:
                yield next_one()
        while waiting:
            yield next_one()


def pack_records(
    images: FaceImages,
    folder: str | Path,
    size: int = 112,
    *,
    fit: Fit = "crop",
    quality: int = QUALITY,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
) -> dict[str, str]:
    """Write an InsightFace directory (``train.rec``, ``.idx``, ``property``).

    Args:
        images: labelled; an identity without a readable image is left out.
        folder: where; the files appear when they are whole.
        size: of a side; files of that size are packed as they are.
        fit: how others become square.
        quality: of the JPEGs made of them.
        workers: threads.
        progress: called with (images done, images in all).

    Returns:
        the images that could not be read, by name, and why.
    """
    unreadable: dict[str, str] = {}
    order = np.argsort(images.labels, kind="stable").tolist()
    prepare = partial(packed_bytes, images, size=size, fit=fit, quality=quality)

    def readable() -> Iterator[tuple[int, bytes]]:
        classes: dict[int, int] = {}
        for done, (index, content) in enumerate(in_order(prepare, order, workers), 1):
            progress(done, len(order))
            if isinstance(content, ValueError):
                unreadable[images.name(index)] = str(content)
                continue
            label = int(images.labels[index])
            yield classes.setdefault(label, len(classes)), content

    write_record_images(folder, readable(), size)
    return unreadable


def pack_pairs(
    images: ReadableImages,
    pairs: PairList,
    path: str | Path,
    size: int = 112,
    *,
    fit: Fit = "crop",
    quality: int = QUALITY,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a verification set as InsightFace ships them.

    Args:
        images: what the pairs index into.
        pairs: who is compared with whom.
        path: the ``.bin`` file.
        size: as for `pack_records`, like the next two.
        fit: how others become square.
        quality: of the JPEGs made of them.
        workers: threads.
        progress: called with (images done, images in all).

    Raises:
        ValueError: an image that cannot be read.
    """
    prepare = partial(packed_bytes, images, size=size, fit=fit, quality=quality)
    indices = np.stack([pairs.first, pairs.second], axis=1).ravel().tolist()
    found = []
    for done, (_, content) in enumerate(in_order(prepare, indices, workers), 1):
        progress(done, len(indices))
        if isinstance(content, ValueError):
            raise content
        found.append(content)
    write_pairs_bin(path, found, pairs.same.tolist())
