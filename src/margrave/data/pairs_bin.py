"""Verification sets as InsightFace ships them: ``lfw.bin`` and its like.

Such a file is a pickle of (images, same): 2P encoded images, of which 2k and 2k + 1 are pair k, and
P truth values. It is read without being executed.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.data.pair_lists import PairList
from margrave.files import Budget, atomic_write, read_bytes, read_inert, shown

LARGEST_FILE = 2**31


class PackedImages:
    """Encoded images in memory, read by position.

    Args:
        encoded: JPEG or PNG files' bytes.
        source: what messages call them together.
        maximum_pixels: larger images are refused unread, see ``decode_image``.
    """

    def __init__(
        self, encoded: Sequence[bytes], source: str, maximum_pixels: int = MAXIMUM_PIXELS
    ) -> None:
        self.encoded = encoded
        self.source = source
        self.maximum_pixels = maximum_pixels

    def __len__(self) -> int:
        return len(self.encoded)

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 of the images: which ones these are, as they have no names."""
        total = hashlib.sha256()
        for image in self.encoded:
            total.update(len(image).to_bytes(8, "little") + image)
        return total.hexdigest()

    def name(self, index: int) -> str:
        """Where the image lies, for messages."""
        return f"{self.source}, image {index}"

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB."""
        return decode_image(self.encoded[index], self.name(index), self.maximum_pixels)

    def read_bytes(self, index: int) -> bytes:
        """The image's file."""
        return self.encoded[index]


def read_pairs_bin(path: str | Path, folds: int = 10) -> tuple[PairList, PackedImages]:
    """Pairs and images of a ``.bin`` file; nothing in it is executed.

    Args:
        path: the file.
        folds: of the protocol; ten, as the sets that are shipped so are meant for. Sizes differ by
            at most one pair, and fewer pairs make as many folds.

    Raises:
        ValueError: damaged, of another form, or holding anything but images and truth values.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} is larger than {LARGEST_FILE} bytes; split it")
        data = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    content = read_inert(data, str(path))
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError(f"{path} is no pair of images and truth values")
    # One image can be listed any number of times; each is read, and some are copied.
    budget = Budget(len(data), str(path))
    images = [
        _image(item, path, number, budget)
        for number, item in enumerate(_sequence(content[0], path))
    ]
    same = np.array([_truth(item, path, n) for n, item in enumerate(_sequence(content[1], path))])
    if len(images) != 2 * len(same) or not len(same):
        raise ValueError(
            f"{path} holds {len(images)} images for {len(same)} pairs, where each has two"
        )
    first = np.arange(0, len(images), 2)
    return PairList(first, first + 1, same, min(folds, len(same))), PackedImages(images, str(path))


def _sequence(value: Any, path: Path) -> Sequence[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path} holds a {type(value).__name__} where a list belongs")
    return value


def _image(value: Any, path: Path, number: int, budget: Budget) -> bytes:
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 1:
        budget.take(value.nbytes)
        return value.tobytes()
    if not isinstance(value, bytes | bytearray):
        raise ValueError(f"{path}: image {number} is a {type(value).__name__}, not bytes")
    budget.take(len(value))
    return bytes(value)


def _truth(value: Any, path: Path, number: int) -> bool:
    if isinstance(value, bool | np.bool_) or (
        isinstance(value, int | np.integer) and value in (0, 1)
    ):
        return bool(value)
    raise ValueError(f"{path}: pair {number} is {shown(value)}, neither true nor false")


def write_pairs_bin(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a ``.bin`` file that InsightFace and its like read too.

    Args:
        path: the file.
        images: encoded images; 2k and 2k + 1 are pair k.
        same: of each pair.

    Raises:
        ValueError: not two images for each pair.
    """
    if len(images) != 2 * len(same):
        raise ValueError(f"{len(images)} images for {len(same)} pairs; each pair has two")
    content = [bytes(image) for image in images], [bool(value) for value in same]
    with atomic_write(path) as unfinished:
        # The last generation that Python before 3.8 reads.
        unfinished.write_bytes(pickle.dumps(content, protocol=4))
