"""Verification sets in InsightFace's ``.bin`` format, such as ``lfw.bin``.

The file is a pickle of (images, same): a list of 2P encoded images and a list of P booleans. Images
2k and 2k + 1 form pair k; its boolean is True if they show the same identity. The pickle is parsed
without being executed.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from margrave.data.contract import SOURCES
from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.data.pair_lists import PairList
from margrave.files import Budget, atomic_write, describe_value, file_kind, read_bytes, read_inert
from margrave.images import ReadableImages
from margrave.quantity import quantity

MAX_FILE_BYTES = 2**31


class EncodedImages(ReadableImages):
    """Encoded images in memory.

    Args:
        encoded: the bytes of each JPEG or PNG file.
        source: the file or image set, for messages.
        maximum_pixels: images with more pixels are rejected (see ``decode_image``).
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
    def content_digest(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """SHA-256 of the encoded images; their names (file and index) do not identify them."""
        digest = hashlib.sha256()
        for image in self.encoded:
            digest.update(len(image).to_bytes(8, "little") + image)
        return digest.hexdigest()

    def name(self, index: int) -> str:
        """The file and the image's index in it, for messages."""
        return f"{self.source}, image {index}"

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB."""
        return decode_image(self.encoded[index], self.name(index), self.maximum_pixels)

    def read_bytes(self, index: int) -> bytes:
        """The image's encoded file."""
        return self.encoded[index]


def _detect(path: str) -> Mapping[str, Any] | None:
    if "://" in path or Path(path).is_dir():
        return None
    return {"root": path} if path.lower().endswith(".bin") or file_kind(path) == "pickle" else None


@SOURCES.register("pairs_bin", detect=_detect)
def images_of_pairs(root: str | Path) -> EncodedImages:
    """The images of a ``.bin`` pair file, without the pairs."""
    return read_pairs_bin(root)[1]


def read_pairs_bin(path: str | Path, folds: int = 10) -> tuple[PairList, EncodedImages]:
    """Read the pairs and images of a ``.bin`` file; nothing in it is executed.

    Args:
        path: the ``.bin`` file.
        folds: number of cross-validation folds; the published sets use 10. Fold sizes differ by at
            most one pair. If there are fewer pairs than folds, each pair is a fold.

    Raises:
        ValueError: the file is damaged or contains anything but images and booleans.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(
                f"{path} is larger than {MAX_FILE_BYTES} bytes; split its pairs into several files"
            )
        data = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    content = read_inert(data, str(path))
    if not isinstance(content, tuple | list) or len(content) != 2:
        raise ValueError(
            f"{path} is not a pair of (images, same); give a .bin file in InsightFace's format"
        )
    # A damaged file can refer to one image many times, and the copies could exhaust memory.
    budget = Budget(len(data), str(path))
    images = [
        _as_bytes(item, path, index, budget)
        for index, item in enumerate(_as_sequence(content[0], path))
    ]
    same = np.array(
        [_as_bool(item, path, index) for index, item in enumerate(_as_sequence(content[1], path))]
    )
    if len(images) != 2 * len(same) or not len(same):
        raise ValueError(
            f"{path} contains {quantity(len(images), 'image')} for {quantity(len(same), 'pair')}; "
            "each pair needs two images"
        )
    first = np.arange(0, len(images), 2)
    return PairList(first, first + 1, same, min(folds, len(same))), EncodedImages(images, str(path))


def _as_sequence(value: Any, path: Path) -> Sequence[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{path}: expected a list, got {type(value).__name__}; the file must contain a list of "
            "images and a list of booleans"
        )
    return value


def _as_bytes(value: Any, path: Path, index: int, budget: Budget) -> bytes:
    # An array of single bytes, such as uint8, is an encoded image too.
    if isinstance(value, np.ndarray) and value.dtype.itemsize == 1:
        budget.charge(value.nbytes)
        return value.tobytes()
    if not isinstance(value, bytes | bytearray):
        raise ValueError(f"{path}: image {index} is a {type(value).__name__}, not bytes")
    budget.charge(len(value))
    return bytes(value)


def _as_bool(value: Any, path: Path, index: int) -> bool:
    if isinstance(value, bool | np.bool_) or (
        isinstance(value, int | np.integer) and value in (0, 1)
    ):
        return bool(value)
    raise ValueError(f"{path}: pair {index} is {describe_value(value)}; it must be true or false")


def write_pairs_bin(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a ``.bin`` file that InsightFace and other tools can read.

    Args:
        path: the ``.bin`` file.
        images: encoded images; images 2k and 2k + 1 form pair k.
        same: for each pair, whether both images show the same identity.

    Raises:
        ValueError: there are no pairs, or the number of images is not twice the number of pairs.
    """
    if not len(same):
        raise ValueError(f"{path} would contain no pairs; give at least one pair")
    if len(images) != 2 * len(same):
        raise ValueError(
            f"{quantity(len(images), 'image')} for {quantity(len(same), 'pair')}; "
            "give two images per pair"
        )
    content = [bytes(image) for image in images], [bool(value) for value in same]
    with atomic_write(path) as unfinished:
        # Protocol 4 is the highest that Python before 3.8 can read.
        unfinished.write_bytes(pickle.dumps(content, protocol=4))
