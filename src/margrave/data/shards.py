"""WebDataset shards: tar files of images and labels, on disk or wherever fsspec reaches.

Beside the shards lie ``shards.json`` (identities, shards, their sizes and SHA-256) and
``samples.bin`` (where each image lies, its label and its CRC-32), so that labels are known at once
and any image can be read alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from margrave.data.decode import MAXIMUM_PIXELS, decode_image
from margrave.files import ordinary
from margrave.files.remote_files import file_ranges, whole_file
from margrave.files.tar_members import tar_members

INDEX, SAMPLES = "shards.json", "samples.bin"
PLAN = ".packing.json"
"""What a packing that is not finished began with."""
SAMPLE = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<u4"), ("crc32", "<u4")])
IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "ppm", "pgm")
LONGEST_LABEL = 2**16


class Strict(BaseModel):
    """Neither more nor other than what is written here."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ShardImages:
    """The images of a folder of shards, read one at a time or, from afar, piece by piece.

    Without ``shards.json`` a folder's tar files are walked through: samples are files that share a
    name up to the first dot, an image and its label (``.cls``, or ``label`` in ``.json``).

    Training does not draw from all images at random but deals out *pieces*, runs of neighbours in a
    shard, and shuffles within windows of several, see `WindowSampler`: so each process fetches each
    byte once. Shards that are packed in random order, as `margrave pack` does, lose nothing by it.

    Args:
        root: a folder, or an address that fsspec knows: ``https://…``, ``s3://…``, ``gs://…``.
        minimum_images: leave out identities with fewer images.
        maximum_pixels: larger images are refused unread, see ``decode_image``.
        piece_images: images that are fetched together.
        window_pieces: pieces that are shuffled together; twice as many are kept in memory by each
            worker when the shards are not on disk (with the defaults about 60 MB).

    Attributes:
        labels: (N,) int64, identities in the order of their labels in the shards.
        class_names: the identity behind each label.
        left_out: identities below ``minimum_images`` and how many images each has.
        walked: whether the shards have no index, so that nothing is known of their checksums.
        pieces: (P + 1,) the first image of each piece, and N.
        window: images that are shuffled together.

    Raises:
        ValueError: no shards, a damaged index, or fewer than two identities.
        ConnectionError: the address does not answer.
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
                f"piece_images = {piece_images}, window_pieces = {window_pieces}; at least 1 each"
            )
        self.root = str(root).rstrip("/")
        self.maximum_pixels = maximum_pixels
        self.window = piece_images * window_pieces
        self._remote = "://" in self.root
        self._begin()
        if self._remote or Path(self.root, INDEX).is_file():
            names, self.shards, counts, rows = self._read_index()
            self.walked = False
        else:
            names, self.shards, counts, rows = walk_shards(Path(self.root))
            self.walked = True
        shard = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
        known, labels, sizes = np.unique(rows["label"], return_inverse=True, return_counts=True)
        few = sizes < minimum_images
        told = [names[label] if label < len(names) else str(label) for label in known.tolist()]
        self.left_out = {told[n]: int(sizes[n]) for n in few.nonzero()[0]}
        self.class_names: Sequence[str] = [told[n] for n in (~few).nonzero()[0]]
        if len(self.class_names) < 2:
            raise ValueError(
                f"{self.root} holds {len(self.class_names)} identities with at least "
                f"{max(1, minimum_images)} images where two are the least; lower minimum_images"
            )
        if few.any():
            stays = ~few[labels]
            rows, shard, labels = rows[stays], shard[stays], labels[stays]
        self.labels = (np.cumsum(~few) - 1)[labels].astype(np.int64)
        self._rows, self._shard = rows, shard
        self.pieces = _pieces(np.bincount(shard, minlength=len(counts)), piece_images)
        # Those of small shards are smaller, so a window spans more.
        self._keep = 2 * max(window_pieces, -(-self.window * len(self.pieces) // len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Shard and place in it, for messages."""
        shard, row = self.shards[self._shard[index]], self._rows[index]
        return f"{self.root}/{shard}, {row['size']} bytes at byte {row['offset']}"

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the pieces that hold these images and are not at hand, all at once.

        What cannot be fetched for the shard's sake is left to `read_bytes`, which says so for each
        image.
        """
        if not self._remote:
            return
        pieces = np.unique(np.searchsorted(self.pieces, indices, side="right") - 1).tolist()
        for piece in pieces:
            if piece in self._kept:
                self._kept.move_to_end(piece)
        missing = [piece for piece in pieces if piece not in self._kept]
        try:
            self._kept.update(zip(missing, self._fetch(missing), strict=True))
        except ValueError:
            return
        while len(self._kept) > max(self._keep, len(pieces)):
            self._kept.popitem(last=False)

    def read_bytes(self, index: int) -> bytes:
        """The image's file as it lies in the shard.

        Raises:
            ValueError: it cannot be read, or is not what was packed.
            ConnectionError: the address does not answer.
        """
        offset, size, _, expected = self._rows[index].item()
        if self._remote:
            piece = int(np.searchsorted(self.pieces, index, side="right")) - 1
            kept = self._kept.get(piece)
            if kept is None:
                address = f"{self.root}/{self.shards[self._shard[index]]}"
                content = file_ranges([address], [offset], [offset + size])[0]
            else:
                start = offset - int(self._rows["offset"][self.pieces[piece]])
                content = kept[start : start + size]
        else:
            shard = os.path.join(self.root, self.shards[self._shard[index]])
            try:
                # Held while it is read, or another thread's eviction might close it.
                file = self._open(shard)
                content = os.pread(file.number, size, offset)
            except OSError as error:
                raise ValueError(f"{shard} cannot be read ({error.strerror})") from None
        if len(content) < size or (not self.walked and zlib.crc32(content) != expected):
            raise ValueError(
                f"{self.name(index)}: not what was packed, the shard is damaged; fetch it again"
            )
        return content

    def read(self, index: int) -> np.ndarray:
        """The image as (height, width, 3) uint8, RGB.

        Raises:
            ValueError: it cannot be read or decoded, naming the shard and the reason.
        """
        return decode_image(self.read_bytes(index), self.name(index), self.maximum_pixels)

    def _begin(self) -> None:
        """With nothing at hand yet, in each process that this is sent to."""
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        # A shard is read many times.
        self._open = lru_cache(maxsize=128)(_Opened)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_kept", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _fetch(self, pieces: Sequence[int]) -> list[bytes]:
        """The bytes of pieces, side by side."""
        offset, size = self._rows["offset"], self._rows["size"]
        first, last = self.pieces[pieces], self.pieces[np.asarray(pieces, int) + 1] - 1
        starts = offset[first].tolist()
        ends = (offset[last] + size[last]).tolist()
        addresses = [f"{self.root}/{self.shards[self._shard[n]]}" for n in first]
        return file_ranges(addresses, starts, ends) if addresses else []

    def _read_index(self) -> tuple[list[str], list[str], list[int], np.ndarray]:
        """Identities, shards, images in each, and all images."""
        where = f"{self.root}/{INDEX}"
        index = _index_of(whole_file(where), where)
        where = f"{self.root}/{SAMPLES}"
        content = whole_file(where)
        counts = [shard.samples for shard in index.shards]
        if hashlib.sha256(content).hexdigest() != index.samples_sha256:
            raise ValueError(f"{where} is not what {INDEX} describes; fetch both again")
        if len(content) != sum(counts) * SAMPLE.itemsize:
            raise ValueError(f"{where} holds {len(content)} bytes for {sum(counts)} images")
        rows = np.frombuffer(content, SAMPLE)
        lengths = np.repeat(np.array([shard.bytes for shard in index.shards], np.uint64), counts)
        outside = (rows["offset"] > lengths) | (rows["size"] > lengths - rows["offset"])
        outside |= rows["label"] >= len(index.identities)
        # They follow one another, or a piece would not be a range.
        starts_shard = np.zeros(len(rows), bool)
        sizes = np.array(counts, np.int64)
        starts_shard[np.cumsum(sizes) - sizes] = True
        overlaps = rows["offset"][1:] < rows["offset"][:-1] + rows["size"][:-1]
        outside[1:] |= overlaps & ~starts_shard[1:]
        if outside.any():
            number = int(outside.nonzero()[0][0])
            raise ValueError(
                f"{where}: image {number} lies outside its shard, over another or has no identity"
            )
        return index.identities, [shard.name for shard in index.shards], counts, rows


class ShardEntry(Strict):
    """A shard as ``shards.json`` lists it."""

    name: str = Field(pattern=r"^[^/\\]+\.tar$")
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0, lt=2**63)
    sha256: str


class ShardIndex(Strict):
    """``shards.json``."""

    version: Literal[1]
    identities: list[str]
    """The name behind each label."""
    samples_sha256: str
    shards: list[ShardEntry]


def _index_of(content: bytes, where: str) -> ShardIndex:
    """``shards.json``, checked: names that stay in their folder, counts that are counts."""
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{where} is not an index of shards as margrave pack writes it ({place}: "
            f"{first['msg']}); pack again, or remove it to have the shards walked through"
        ) from None


def _pieces(counts: np.ndarray, piece_images: int) -> np.ndarray:
    """(P + 1,) where pieces of so many images begin, none of which spans two shards."""
    parts = [
        np.arange(start, start + count, piece_images)
        for start, count in zip(np.cumsum(counts) - counts, counts, strict=True)
    ]
    return np.concatenate([*parts, [counts.sum()]]).astype(np.int64)


class _Opened:
    """A file descriptor that closes with whoever holds it."""

    def __init__(self, path: str) -> None:
        self.number = ordinary(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def walk_shards(folder: Path) -> tuple[list[str], list[str], list[int], np.ndarray]:
    """Identities, shards, images in each, and all images of tar files without an index.

    Raises:
        ValueError: no tar files, a damaged one, a sample without an image or label.
    """
    if (folder / PLAN).is_file():
        raise ValueError(f"{folder} is not wholly packed; call the same margrave pack once more")
    paths = sorted(folder.glob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder} is no folder of shards: it holds neither {INDEX} nor *.tar")
    rows: list[tuple[int, int, int, int]] = []
    names, counts = [], []
    for path in paths:
        before = len(rows)
        rows += _walk(path)
        if len(rows) > before:
            names.append(path.name)
            counts.append(len(rows) - before)
    return [], names, counts, np.array(rows, SAMPLE)


def _walk(path: Path) -> list[tuple[int, int, int, int]]:
    rows = []
    try:
        file = _Opened(str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    length = os.fstat(file.number).st_size

    def read(start: int, count: int) -> bytes:
        return os.pread(file.number, min(count, max(0, length - start)), start)

    key, image, label = "", None, None
    for member in tar_members(read, length, str(path)):
        own, _, extension = member.name.rpartition("/")[2].partition(".")
        own = f"{member.name.rpartition('/')[0]}/{own}"
        if own != key:
            rows += _row(path, key, image, label)
            key, image, label = own, None, None
        if extension.lower() in IMAGE_EXTENSIONS and image is None:
            image = member
        elif extension in ("cls", "json") and label is None:
            if member.size > LONGEST_LABEL:
                raise ValueError(f"{path}, {member.name}: a label of {member.size} bytes")
            content = read(member.offset, member.size)
            label = _label(content, extension, f"{path}, {member.name}")
    return [*rows, *_row(path, key, image, label)]


def _row(path: Path, key: str, image: Any, label: int | None) -> list[tuple[int, int, int, int]]:
    if image is None:
        return []
    if label is None:
        raise ValueError(f"{path}, {image.name} has no label; add {key.strip('/')}.cls beside it")
    if image.size >= 2**32:
        raise ValueError(f"{path}, {image.name}: {image.size} bytes are no image of a face")
    return [(image.offset, image.size, label, 0)]


def _label(content: bytes, extension: str, where: str) -> int | None:
    label: Any = content.strip()
    if extension == "json":
        try:
            said = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError(f"{where} is not JSON") from None
        label = said.get("label") if isinstance(said, dict) else None
        if label is None:
            return None
        label = str(label).encode()
    if not label.isdigit() or len(label) > 9:
        raise ValueError(f"{where}: {label[:20]!r} is no label; labels are whole numbers")
    return int(label)
