"""Pack images and pairs into InsightFace's file formats."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from margrave.data.decode import Fit, decode_image, fit_image
from margrave.data.pair_lists import PairList
from margrave.data.pairs_bin import write_pairs_bin
from margrave.data.record_images import write_record_images
from margrave.data.sources import ImageSource, open_source
from margrave.images import ReadableImages
from margrave.progress import Progress

MAX_PENDING = 64
"""Maximum number of images that are being prepared or wait to be written."""
QUALITY = 95
"""Default JPEG quality."""


def packed_bytes(
    images: ReadableImages, index: int, size: int, fit: Fit = "crop", quality: int = QUALITY
) -> bytes:
    """The image's file unchanged if it is a JPEG or PNG of size × size pixels; else a new JPEG.

    Raises:
        ValueError: the image cannot be read.
    """
    content = images.read_bytes(index)
    if content is not None:
        image = decode_image(content, images.name(index))
        is_jpeg_or_png = content[:2] in (b"\xff\xd8", b"\x89P")
        if image.shape[:2] == (size, size) and is_jpeg_or_png:
            return content
    else:
        image = images.read(index)
    fitted = cv2.cvtColor(fit_image(image, size, fit), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", fitted, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def prepare_in_order(
    prepare: Callable[[int], bytes], indices: Iterable[int], workers: int
) -> Iterator[tuple[int, bytes | ValueError]]:
    """Prepare images in several threads; yields (index, image file or error) in the given order."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[tuple[int, Future[bytes]]] = deque()

        def next_result() -> tuple[int, bytes | ValueError]:
            index, future = pending.popleft()
            try:
                return index, future.result()
            except ValueError as error:
                return index, error

        for index in indices:
            pending.append((index, pool.submit(prepare, index)))
            if len(pending) >= MAX_PENDING:
                yield next_result()
        while pending:
            yield next_result()


def pack_records(
    images: ImageSource,
    folder: str | Path,
    size: int = 112,
    *,
    fit: Fit = "crop",
    quality: int = QUALITY,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
) -> dict[str, str]:
    """Write an InsightFace directory (``train.rec``, ``train.idx``, ``property``).

    Args:
        images: labeled images; identities without a readable image are skipped.
        folder: the folder to write, created if necessary; its files appear once they are complete.
        size: side in pixels; JPEG and PNG files of this size are packed unchanged.
        fit: how to fit images of other sizes.
        quality: JPEG quality of re-encoded images.
        workers: number of threads.
        progress: called with (images done, total images).

    Returns:
        Unreadable images: name -> reason.
    """
    images = open_source(images, labeled=True)
    unreadable: dict[str, str] = {}
    order = np.argsort(images.labels, kind="stable").tolist()
    prepare = partial(packed_bytes, images, size=size, fit=fit, quality=quality)

    def readable_images() -> Iterator[tuple[int, bytes]]:
        new_labels: dict[int, int] = {}
        for done, (index, result) in enumerate(prepare_in_order(prepare, order, workers), 1):
            progress(done, len(order))
            if isinstance(result, ValueError):
                unreadable[images.name(index)] = str(result)
                continue
            label = int(images.labels[index])
            yield new_labels.setdefault(label, len(new_labels)), result

    write_record_images(folder, readable_images(), size)
    return unreadable


def pack_pairs(
    images: ImageSource,
    pairs: PairList,
    path: str | Path,
    size: int = 112,
    *,
    fit: Fit = "crop",
    quality: int = QUALITY,
    workers: int = 4,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a verification set in InsightFace's ``.bin`` format.

    Args:
        images: the images.
        pairs: pairs of indices into the images.
        path: the ``.bin`` file.
        size: side in pixels; JPEG and PNG files of this size are packed unchanged.
        fit: how to fit images of other sizes.
        quality: JPEG quality of re-encoded images.
        workers: number of threads.
        progress: called with (images done, total images), where the total is two per pair.

    Raises:
        ValueError: an image cannot be read.
    """
    prepare = partial(packed_bytes, open_source(images), size=size, fit=fit, quality=quality)
    indices = np.stack([pairs.first, pairs.second], axis=1).ravel().tolist()
    contents = []
    for done, (_, result) in enumerate(prepare_in_order(prepare, indices, workers), 1):
        progress(done, len(indices))
        if isinstance(result, ValueError):
            raise result
        contents.append(result)
    write_pairs_bin(path, contents, pairs.same.tolist())
