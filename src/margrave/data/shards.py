"""WebDataset shards: tar files of images and labels, on disk or at a URL that fsspec supports.

The index consists of ``shards.json`` (names of the identities; sizes and SHA-256 of the shards) and
``samples.bin`` (each image's offset, size, label and CRC-32). With the index, all labels are known
without reading the shards, and any single image can be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from margrave.data.contract import SOURCES
from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.files import open_regular
from margrave.files.remote_files import read_file, read_ranges
from margrave.files.tar_members import Member, tar_members
from margrave.images import FaceImages
from margrave.quantity import quantity

INDEX, SAMPLES = "shards.json", "samples.bin"
PLAN = ".packing.json"
"""File that identifies an unfinished packing by its settings and a digest of its images."""
SAMPLE_DTYPE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<u4"), ("crc32", "<u4")])
"""Layout of ``samples.bin``, which has one row per image."""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "ppm", "pgm")
MAX_LABEL_BYTES = 2**16
"""Maximum size of the file that gives a sample's label."""


class StrictModel(BaseModel):
    """A pydantic model that allows no extra fields and no type conversion."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _detect(path: str) -> Mapping[str, Any] | None:
    folder = Path(path)
    is_shards = "://" in path or (
        folder.is_dir() and ((folder / INDEX).is_file() or any(folder.glob("*.tar")))
    )
    return {"root": path} if is_shards else None


@SOURCES.register("shards", detect=_detect)
class ShardImages(FaceImages):
    """The images of a folder or URL of shards.

    A folder without ``shards.json`` is scanned: in each of its tar files, the files with the same
    name up to the first dot form a sample, which consists of an image and its label (``.cls``, or
    ``label`` in ``.json``).

    A *piece* is a run of consecutive images of a shard. From a URL, images are fetched in whole
    pieces. Training splits the pieces among its processes and shuffles within windows of several
    pieces (see `WindowSampler`), so each process fetches each of its pieces only once. If the
    images were packed in random order, as `margrave pack` does, this is as good as a full shuffle.

    Args:
        root: a folder, or a URL that fsspec supports: ``https://…``, ``s3://…``, ``gs://…``.
        minimum_images: skip identities with fewer images.
        maximum_pixels: images with more pixels are rejected (see ``decode_image``).
        piece_images: number of images per piece.
        window_pieces: number of pieces to shuffle together. For a URL, each worker caches twice as
            many pieces (about 60 MB with the defaults).

    Attributes:
        labels: (N,) int64, class of each image; classes are in ascending order of the labels in
            the shards.
        class_names: identity of each class, indexed by label.
        left_out: identities skipped because of ``minimum_images`` -> number of images.
        scanned: True if there is no index, so the shards were scanned and have no checksums.
        window: number of images to shuffle together.

    Raises:
        ValueError: no shards, a damaged index, or fewer than two identities.
        ConnectionError: the server does not respond.
    """

    def __init__(
        self,
        root: str | Path,
        minimum_images: int = 1,
        maximum_pixels: int = MAXIMUM_PIXELS,
        piece_images: int = 256,
        window_pieces: int = 16,
    ) -> None:
        if piece_images < 1 or window_pieces < 1:
            raise ValueError(
                f"piece_images = {piece_images}, window_pieces = {window_pieces}; both must be >= 1"
            )
        self.root = str(root).rstrip("/")
        self.maximum_pixels = maximum_pixels
        self.window = piece_images * window_pieces
        self._remote = "://" in self.root
        self._clear_caches()
        if self._remote or Path(self.root, INDEX).is_file():
            identities, self.shards, images_per_shard, rows = self._read_index()
            self.scanned = False
        else:
            identities, self.shards, images_per_shard, rows = scan_shards(Path(self.root))
            self.scanned = True
        shard_of_image = np.repeat(
            np.arange(len(images_per_shard), dtype=np.uint32), images_per_shard
        )
        unique_labels, class_of_image, images_per_identity = np.unique(
            rows["label"], return_inverse=True, return_counts=True
        )
        is_small = images_per_identity < minimum_images
        # Scanned shards give no names, so the label becomes the name.
        identity_names = [
            identities[label] if label < len(identities) else str(label)
            for label in unique_labels.tolist()
        ]
        self.left_out = {
            identity_names[n]: int(images_per_identity[n]) for n in is_small.nonzero()[0]
        }
        self.class_names = [identity_names[n] for n in (~is_small).nonzero()[0]]
        if len(self.class_names) < 2:
            raise ValueError(
                f"{self.root} contains {quantity(len(self.class_names), 'identity')} with at least "
                f"{quantity(max(1, minimum_images), 'image')}, but training needs two; "
                "lower minimum_images"
            )
        if is_small.any():
            keep = ~is_small[class_of_image]
            rows, shard_of_image = rows[keep], shard_of_image[keep]
            class_of_image = class_of_image[keep]
        new_class = np.cumsum(~is_small) - 1
        self.labels = new_class[class_of_image].astype(np.int64)
        self._rows, self._shard_of_image = rows, shard_of_image
        self._pieces = _piece_bounds(
            np.bincount(shard_of_image, minlength=len(images_per_shard)), piece_images
        )
        # Small shards have pieces of fewer images, so a window may contain more than
        # `window_pieces` pieces. The mean number of pieces per window is rounded up.
        self._max_cached_pieces = 2 * max(
            window_pieces, -(-self.window * len(self._pieces) // len(self.labels))
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pieces(self) -> np.ndarray:
        """(P + 1,) index of the first image of each piece, then N."""
        return self._pieces

    def name(self, index: int) -> str:
        """The shard and the image's position in it, for messages."""
        shard, row = self.shards[self._shard_of_image[index]], self._rows[index]
        return f"{self.root}/{shard}, {row['size']} bytes at byte {row['offset']}"

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the pieces of these images concurrently, except those already cached.

        If a piece cannot be read, `read_bytes` later fetches each image and reports its error.
        """
        if not self._remote:
            return
        pieces = np.unique(np.searchsorted(self._pieces, indices, side="right") - 1).tolist()
        for piece in pieces:
            if piece in self._cached_pieces:
                self._cached_pieces.move_to_end(piece)
        missing = [piece for piece in pieces if piece not in self._cached_pieces]
        try:
            self._cached_pieces.update(zip(missing, self._fetch(missing), strict=True))
        except ValueError:
            return
        while len(self._cached_pieces) > max(self._max_cached_pieces, len(pieces)):
            self._cached_pieces.popitem(last=False)

    def read_bytes(self, index: int) -> bytes:
        """The image's encoded file.

        Raises:
            ValueError: the image cannot be read, or differs from the image that was packed.
            ConnectionError: the server does not respond.
        """
        offset, size, _, expected_crc32 = self._rows[index].item()
        if self._remote:
            piece = int(np.searchsorted(self._pieces, index, side="right")) - 1
            piece_bytes = self._cached_pieces.get(piece)
            if piece_bytes is None:
                address = f"{self.root}/{self.shards[self._shard_of_image[index]]}"
                content = read_ranges([address], [offset], [offset + size])[0]
            else:
                start = offset - int(self._rows["offset"][self._pieces[piece]])
                content = piece_bytes[start : start + size]
        else:
            shard = os.path.join(self.root, self.shards[self._shard_of_image[index]])
            try:
                # Keep a reference while reading: an evicted file without references is closed.
                file = self._open(shard)
                content = os.pread(file.descriptor, size, offset)
            except OSError as error:
                raise ValueError(
                    f"{shard} cannot be read ({error.strerror}); check the path and its permissions"
                ) from None
        if len(content) < size or (not self.scanned and zlib.crc32(content) != expected_crc32):
            raise ValueError(
                f"{self.name(index)}: the shard is damaged, since its content differs from the "
                "packed image; download it again"
            )
        return content

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: the image cannot be read or decoded; the message gives shard and reason.
        """
        return decode_image(self.read_bytes(index), self.name(index), self.maximum_pixels)

    def _clear_caches(self) -> None:
        """Create empty caches, which are not pickled: each process has its own."""
        self._cached_pieces: OrderedDict[int, bytes] = OrderedDict()
        # Up to 128 shards stay open, because each of them is read many times.
        self._open = lru_cache(maxsize=128)(_OpenFile)

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in vars(self).items()
            if key not in ("_cached_pieces", "_open")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._clear_caches()

    def _fetch(self, pieces: Sequence[int]) -> list[bytes]:
        """Download the bytes of each piece."""
        offset, size = self._rows["offset"], self._rows["size"]
        first, last = self._pieces[pieces], self._pieces[np.asarray(pieces, int) + 1] - 1
        starts = offset[first].tolist()
        ends = (offset[last] + size[last]).tolist()
        addresses = [f"{self.root}/{self.shards[self._shard_of_image[n]]}" for n in first]
        return read_ranges(addresses, starts, ends) if addresses else []

    def _read_index(self) -> tuple[list[str], list[str], list[int], np.ndarray]:
        """Read the index: identities, shard names, images per shard, and one row per image."""
        address = f"{self.root}/{INDEX}"
        index = _parse_index(read_file(address), address)
        address = f"{self.root}/{SAMPLES}"
        content = read_file(address)
        images_per_shard = [shard.samples for shard in index.shards]
        num_images = sum(images_per_shard)
        if hashlib.sha256(content).hexdigest() != index.samples_sha256:
            raise ValueError(f"{address} does not match {INDEX}; download both again")
        if len(content) != num_images * SAMPLE_DTYPE.itemsize:
            raise ValueError(
                f"{address} has {len(content)} bytes for {num_images} images; download it again"
            )
        rows = np.frombuffer(content, SAMPLE_DTYPE)
        shard_bytes = np.repeat(
            np.array([shard.bytes for shard in index.shards], np.uint64), images_per_shard
        )
        invalid = (rows["offset"] > shard_bytes) | (rows["size"] > shard_bytes - rows["offset"])
        invalid |= rows["label"] >= len(index.identities)
        # A piece is fetched as one byte range, so the images of a shard must be in file order.
        begins_shard = np.zeros(len(rows), bool)
        counts = np.array(images_per_shard, np.int64)
        begins_shard[np.cumsum(counts) - counts] = True
        overlaps = rows["offset"][1:] < rows["offset"][:-1] + rows["size"][:-1]
        invalid[1:] |= overlaps & ~begins_shard[1:]
        if invalid.any():
            image = int(invalid.nonzero()[0][0])
            raise ValueError(
                f"{address}: image {image} lies outside its shard, overlaps another image or "
                "has no identity; download the index again"
            )
        names = [shard.name for shard in index.shards]
        return index.identities, names, images_per_shard, rows


class ShardEntry(StrictModel):
    """One shard's entry in ``shards.json``."""

    name: str = Field(pattern=r"^[^/\\]+\.tar$")
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0, lt=2**63)
    sha256: str


class ShardIndex(StrictModel):
    """The content of ``shards.json``."""

    version: Literal[1]
    identities: list[str]
    """Name of each identity, indexed by label."""
    samples_sha256: str
    shards: list[ShardEntry]


def _parse_index(content: bytes, address: str) -> ShardIndex:
    """Parse and validate ``shards.json``."""
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{address} is not an index written by margrave pack ({field}: "
            f"{first['msg']}); pack again, or, if the folder is local, remove the index so that "
            "the shards are scanned"
        ) from None


def _piece_bounds(images_per_shard: np.ndarray, piece_images: int) -> np.ndarray:
    """(P + 1,) index of the first image of each piece, then N; no piece spans two shards."""
    first_images = np.cumsum(images_per_shard) - images_per_shard
    starts = [
        np.arange(first, first + count, piece_images)
        for first, count in zip(first_images, images_per_shard, strict=True)
    ]
    return np.concatenate([*starts, [images_per_shard.sum()]]).astype(np.int64)


class _OpenFile:
    """A file descriptor that is closed once nothing references it."""

    def __init__(self, path: str) -> None:
        self.descriptor = open_regular(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def scan_shards(folder: Path) -> tuple[list[str], list[str], list[int], np.ndarray]:
    """Scan tar files without an index.

    Returns:
        Names of the identities (an empty list, because tar files give none), shard names, images
        per shard, and one row per image.

    Raises:
        ValueError: no tar files, a damaged tar file, or an image without a label.
    """
    if (folder / PLAN).is_file():
        raise ValueError(
            f"{folder} is only partly packed; run the same margrave pack command again"
        )
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"{folder} is not a folder of shards; it contains neither {INDEX} nor *.tar files"
        )
    rows: list[tuple[int, int, int, int]] = []
    names, counts = [], []
    for path in paths:
        first_row = len(rows)
        rows += _scan_shard(path)
        if len(rows) > first_row:
            names.append(path.name)
            counts.append(len(rows) - first_row)
    return [], names, counts, np.array(rows, SAMPLE_DTYPE)


def _scan_shard(path: Path) -> list[tuple[int, int, int, int]]:
    """One row per sample of a tar file: offset, size, label, and 0 instead of a CRC-32."""
    rows = []
    try:
        file = _OpenFile(str(path))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from None
    length = os.fstat(file.descriptor).st_size

    def read(start: int, count: int) -> bytes:
        return os.pread(file.descriptor, min(count, max(0, length - start)), start)

    key, image, label = "", None, None
    for member in tar_members(read, length, str(path)):
        member_folder, _, file_name = member.name.rpartition("/")
        stem, _, extension = file_name.partition(".")
        extension = extension.lower()
        member_key = f"{member_folder}/{stem}"
        if member_key != key:
            # The previous sample is complete, and this member begins the next one.
            rows += _sample_rows(path, key, image, label)
            key, image, label = member_key, None, None
        if extension in IMAGE_EXTENSIONS and image is None:
            image = member
        elif extension in ("cls", "json") and label is None:
            if member.size > MAX_LABEL_BYTES:
                raise ValueError(
                    f"{path}, {member.name}: the label has {member.size} bytes; at most "
                    f"{MAX_LABEL_BYTES} are allowed"
                )
            content = read(member.offset, member.size)
            label = _parse_label(content, extension, f"{path}, {member.name}")
    return [*rows, *_sample_rows(path, key, image, label)]


def _sample_rows(
    path: Path, key: str, image: Member | None, label: int | None
) -> list[tuple[int, int, int, int]]:
    """A list with the sample's row; an empty list if the sample has no image."""
    if image is None:
        return []
    if label is None:
        raise ValueError(f"{path}, {image.name} has no label; add {key.strip('/')}.cls next to it")
    if image.size >= 2**32:
        raise ValueError(f"{path}, {image.name}: {image.size} bytes are too large for an image")
    return [(image.offset, image.size, label, 0)]


def _parse_label(content: bytes, extension: str, where: str) -> int | None:
    """The label in a ``.cls`` or ``.json`` file; None if a JSON file has no label."""
    label: Any = content.strip()
    if extension == "json":
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError(f"{where} is not JSON") from None
        label = fields.get("label") if isinstance(fields, dict) else None
        if label is None:
            return None
        label = str(label).encode()
    if not label.isdigit() or len(label) > 9:
        raise ValueError(
            f"{where}: {label[:20]!r} is not a label; labels are integers of 1 to 9 digits"
        )
    return int(label)
