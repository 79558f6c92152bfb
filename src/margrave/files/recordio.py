"""MXNet's RecordIO format: files of records, and their index.

A record consists of two little-endian 32-bit words, ``magic`` and ``kind << 29 | length``, then the
payload, then zeros up to a multiple of four bytes. Kind 0 is a whole record. If the payload itself
contains the magic at a multiple of four bytes, the writer splits the payload there into parts of
kind 1 (first), 2 (middle) and 3 (last), and omits the magic between them.

An image record's payload is a header, labels and the encoded image; see `split_record`.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from margrave.files.budget import Budget
from margrave.files.regular import read_bytes

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_PART_HEADER = struct.Struct("<II")
IMAGE_HEADER = struct.Struct("<IfQQ")
"""Header of an image record's payload: flag (number of labels that follow), label, two keys."""
_LENGTH_BITS = 29
MAX_RECORD_BYTES = 2**_LENGTH_BITS - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
_WORDS_TO_LABELS = 10
"""Number of 32-bit words from a record's start to the end of its second label: magic, kind and
length, the six words of `IMAGE_HEADER` (one each for flag and label, two per key), two labels."""


class RecordHeaders(NamedTuple):
    """The headers of N records.

    Attributes:
        labels: (N, 2) float32, the first two labels; NaN if there is no second one.
        keys: (N,) uint64, the key stored in each record.
        image_bytes: (N,) int64, size of each encoded image; 0 if a record has none. For a split
            record, it may be only a positive lower bound.
    """

    labels: np.ndarray
    keys: np.ndarray
    image_bytes: np.ndarray


class RecordFile:
    """A memory-mapped RecordIO file; records are read by their offset.

    Args:
        path: the ``.rec`` file.

    Raises:
        ValueError: the file does not exist or is empty.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RecordWriter(Path(folder, "two.rec")) as writer:
    ...         offsets = [writer.write(b"one"), writer.write(b"two")]
    ...     records = RecordFile(Path(folder, "two.rec"))
    ...     [records.read(offset) for offset in offsets]
    [b'one', b'two']
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._bytes: mmap.mmap | None = None
        try:
            self.size = self.path.stat().st_size
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from None
        if self.size == 0:
            raise ValueError(f"{path} is empty; download or copy it again")

    @property
    def bytes(self) -> mmap.mmap:
        """The memory-mapped file; each process maps it on first use."""
        if self._bytes is None:
            try:
                with self.path.open("rb") as file:
                    self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise ValueError(f"{self.path} cannot be read ({error.strerror})") from None
        return self._bytes

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_bytes": None}

    def read(self, offset: int) -> bytes:
        """Read the payload of the record at an offset.

        Raises:
            ValueError: no record begins at the offset, or it is damaged; the message gives the file
                and the offset.
        """
        parts = []
        kind, start, length = self._part_at(offset)
        position = offset
        while True:
            if kind not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
                raise self._damaged(position, f"part {len(parts)} of the record has kind {kind}")
            parts.append(self.bytes[start : start + length])
            if kind in (WHOLE, LAST):
                return _MAGIC_BYTES.join(parts)
            position = start + _padded(length)
            kind, start, length = self._part_at(position)

    def headers(self, offsets: np.ndarray) -> RecordHeaders:
        """Read the headers of the records at these offsets, without the images.

        Raises:
            ValueError: a record is damaged; the message gives the file and the offset.
        """
        words = np.frombuffer(self.bytes, "<u4", self.size // 4)
        # In a file with too few words, all records are read one by one below, and the zeros are
        # only a placeholder.
        words = words if len(words) >= _WORDS_TO_LABELS else np.zeros(_WORDS_TO_LABELS, "<u4")
        first_word = offsets // 4
        # Headers near the end of the file, and damaged offsets, are read one by one below.
        is_inside = (offsets >= 0) & (offsets % 4 == 0)
        is_inside &= (first_word + _WORDS_TO_LABELS) * 4 <= self.size
        first_word = np.where(is_inside, first_word, 0)
        # Columns: 0 magic, 1 kind and length, 2 flag, 3 label, 4-5 key, 6-7 second key, 8-9 labels.
        headers = words[first_word[:, None] + np.arange(_WORDS_TO_LABELS)]
        floats = headers.view("<f4")
        kind, length = (
            headers[:, 1] >> _LENGTH_BITS,
            (headers[:, 1] & MAX_RECORD_BYTES).astype(np.int64),
        )
        # Number of labels after the header; if it is 0, the header contains the only label.
        label_counts = headers[:, 2].astype(np.int64)
        image_bytes = length - IMAGE_HEADER.size - 4 * label_counts
        is_parsed = is_inside & (headers[:, 0] == MAGIC) & (kind <= FIRST) & (image_bytes >= 0)
        is_parsed &= offsets + _PART_HEADER.size + length <= self.size
        labels = np.full((len(offsets), 2), np.nan, np.float32)
        labels[:, 0] = np.where(label_counts == 0, floats[:, 3], floats[:, 8])
        labels[:, 1] = np.where(label_counts > 1, floats[:, 9], np.nan)
        keys = headers[:, 4] | headers[:, 5].astype(np.uint64) << np.uint64(32)
        # Of a split record, only the first part's length is known. Add 1, because a size of 0 would
        # mean that the record has no image.
        image_bytes += (kind == FIRST).astype(np.int64)
        # A damaged index can list a long record many times, so limit the total bytes that are read.
        budget = Budget(self.size, str(self.path))
        for row in np.flatnonzero(~is_parsed):
            offset = int(offsets[row])
            try:
                payload = self.read(offset)
                budget.charge(len(payload))
                label, image = split_record(payload)
            except ValueError as error:
                # Errors of `read` and `budget` name the file already.
                if str(self.path) in str(error):
                    raise
                raise self._damaged(offset, str(error)) from None
            label = np.ravel(label)
            labels[row] = label[0], label[1] if len(label) > 1 else np.nan
            keys[row] = IMAGE_HEADER.unpack_from(payload)[2]
            image_bytes[row] = len(image)
        return RecordHeaders(labels, keys, image_bytes)

    def offsets(self) -> Iterator[int]:
        """Yield the offset of every record by scanning the file.

        Raises:
            ValueError: a record is damaged or truncated.
        """
        position = 0
        while position < self.size:
            record_offset = position
            while True:
                kind, start, length = self._part_at(position)
                position = start + _padded(length)
                if kind in (WHOLE, LAST):
                    break
            yield record_offset

    def _part_at(self, offset: int) -> tuple[int, int, int]:
        """The kind of the record or part at an offset, and the start and length of its payload."""
        start = offset + _PART_HEADER.size
        if not 0 <= offset <= self.size - _PART_HEADER.size:
            raise self._damaged(offset, f"the file has only {self.size} bytes")
        magic, word = _PART_HEADER.unpack_from(self.bytes, offset)
        if magic != MAGIC:
            raise self._damaged(offset, f"no record begins there (0x{magic:08x} is not the magic)")
        length = word & MAX_RECORD_BYTES
        if start + length > self.size:
            raise self._damaged(offset, f"its {length} bytes extend past the end of the file")
        return word >> _LENGTH_BITS, start, length

    def _damaged(self, offset: int, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}: damaged record at byte {offset}: {reason}; download or copy the file "
            "again"
        )


class RecordWriter:
    """Writes records in sequence; the file is identical to one that MXNet writes.

    Args:
        path: the file to write; an existing file is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._offset = 0

    def write(self, payload: bytes) -> int:
        """Append a record.

        Returns:
            The record's offset in bytes.

        Raises:
            ValueError: the payload exceeds the format's limit of half a gigabyte.
        """
        if len(payload) > MAX_RECORD_BYTES:
            raise ValueError(
                f"a record has {len(payload)} bytes; the maximum is {MAX_RECORD_BYTES}"
            )
        record_offset, start = self._offset, 0
        for position in _magic_positions(payload):
            self._write_part(FIRST if start == 0 else MIDDLE, payload[start:position])
            start = position + 4
        self._write_part(LAST if start else WHOLE, payload[start:])
        return record_offset

    def _write_part(self, kind: int, payload: bytes) -> None:
        padding = b"\0" * (-len(payload) % 4)
        header = _PART_HEADER.pack(MAGIC, kind << _LENGTH_BITS | len(payload))
        self._offset += self._file.write(header + payload + padding)

    def close(self) -> None:
        """Flush everything to disk and close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _padded(length: int) -> int:
    """The length rounded up to a multiple of four."""
    return -(-length // 4) * 4


def _magic_positions(payload: bytes) -> Iterator[int]:
    """Yield each multiple of four at which the payload contains the magic."""
    position = payload.find(_MAGIC_BYTES)
    while position >= 0:
        if position % 4 == 0:
            yield position
        position = payload.find(_MAGIC_BYTES, position + 1)


# The possessive *+ prevents backtracking at a malformed line.
_INDEX = re.compile(rb"(?:\d{1,18}\t\d{1,18}\r?\n)*+(?:\d{1,18}\t\d{1,18})?")


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read an ``.idx`` file of ``key<tab>offset`` lines; return the sorted keys and their offsets.

    Raises:
        ValueError: the file cannot be read, a line is malformed, or a key occurs twice; the message
            names the line or key.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    match = _INDEX.match(content)
    assert match is not None  # the pattern also matches the empty string
    if match.end() != len(content):
        line_number = content.count(b"\n", 0, match.end()) + 1
        line = content[content.rfind(b"\n", 0, match.end()) + 1 :].split(b"\n", 1)[0]
        raise ValueError(
            f"{path}, line {line_number}: {line[:60]!r} is not a key and an offset separated by a "
            "tab; remove the file to rebuild it from the records"
        )
    # The content is only numbers and whitespace, so NumPy can parse it, without Python objects.
    pairs = np.fromstring(content, np.int64, sep=" ").reshape(-1, 2)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    duplicates = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if len(duplicates):
        raise ValueError(
            f"{path}: key {pairs[duplicates[0], 0]} occurs twice; "
            "remove the file to rebuild it from the records"
        )
    return pairs[:, 0], pairs[:, 1]


def write_index(path: str | Path, keys: Sequence[int], offsets: Sequence[int]) -> None:
    """Write an ``.idx`` file in MXNet's format."""
    lines = (b"%d\t%d\n" % entry for entry in zip(keys, offsets, strict=True))
    Path(path).write_bytes(b"".join(lines))


def split_record(payload: bytes) -> tuple[np.ndarray, bytes]:
    """Split an image record's payload into its label, () or (n,) float32, and its encoded image.

    If the header's flag is n > 0, n float32 labels follow the header and replace the label in it.

    Raises:
        ValueError: the payload is shorter than its header declares.

    >>> label, image = split_record(join_record(1, 3.0, b"JPEG"))
    >>> float(label), image
    (3.0, b'JPEG')
    """
    if len(payload) < IMAGE_HEADER.size:
        raise ValueError(
            f"it has {len(payload)} bytes, fewer than its {IMAGE_HEADER.size}-byte header"
        )
    count, label, _, _ = IMAGE_HEADER.unpack_from(payload)
    if count == 0:
        return np.float32(label), payload[IMAGE_HEADER.size :]  # type: ignore[return-value]
    if IMAGE_HEADER.size + 4 * count > len(payload):
        raise ValueError(f"it declares {count} labels but has {len(payload)} bytes")
    labels = np.frombuffer(payload, "<f4", count, IMAGE_HEADER.size)
    return labels, payload[IMAGE_HEADER.size + 4 * count :]


def join_record(key: int, label: float | np.ndarray, image: bytes = b"") -> bytes:
    """Build an image record's payload; the label is a number or an (n,) array of numbers."""
    if np.ndim(label) == 0:
        return IMAGE_HEADER.pack(0, float(label), key, 0) + image
    values = np.ascontiguousarray(label, "<f4")
    return IMAGE_HEADER.pack(len(values), 0.0, key, 0) + values.tobytes() + image
