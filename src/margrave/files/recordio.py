"""MXNet's RecordIO: files of records, and their index.

A record is ``magic, kind << 29 | length, payload, zeros to a multiple of four``, all little-endian
32-bit words. Where the payload itself holds the magic at a multiple of four, the writer cuts there:
the parts are records of kind 1 (first), 2 and 3 (last), and the magic between them is left out.
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
from margrave.files.ordinary import read_bytes

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_WORDS = struct.Struct("<II")
_LENGTH_BITS = 29
LONGEST = 2**_LENGTH_BITS - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
_HEAD_WORDS = 10
"""Magic, length, flag, label, key, second key, two labels of a vector."""


class RecordHeads(NamedTuple):
    """What the heads of N records say.

    Attributes:
        labels: (N, 2) float32, the first two labels; NaN for no second.
        keys: (N,) uint64, the number that each record gives itself.
        image_bytes: (N,) int64, 0 where a record holds no image.
    """

    labels: np.ndarray
    keys: np.ndarray
    image_bytes: np.ndarray


class RecordFile:
    """Records of a memory-mapped file, read by where they begin.

    Args:
        path: the ``.rec`` file.

    Raises:
        ValueError: no such file, or an empty one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RecordWriter(Path(folder, "two.rec")) as writer:
    ...         places = [writer.write(b"one"), writer.write(b"two")]
    ...     records = RecordFile(Path(folder, "two.rec"))
    ...     [records.read(place) for place in places]
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
            raise ValueError(f"{path} is empty; fetch or copy it again")

    @property
    def bytes(self) -> mmap.mmap:
        """The whole file, mapped when it is first asked for, in each process by itself."""
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
        """The payload of the record that begins at a byte.

        Raises:
            ValueError: there is none, or it is damaged, naming file and offset.
        """
        parts = []
        kind, start, length = self._head(offset)
        place = offset
        while True:
            if kind not in ((MIDDLE, LAST) if parts else (WHOLE, FIRST)):
                raise self._damaged(place, f"part {len(parts)} of a record is of kind {kind}")
            parts.append(self.bytes[start : start + length])
            if kind in (WHOLE, LAST):
                return _MAGIC_BYTES.join(parts)
            place = start + -(-length // 4) * 4
            kind, start, length = self._head(place)

    def heads(self, offsets: np.ndarray) -> RecordHeads:
        """Labels, own numbers and sizes of the images of the records at these bytes.

        Nothing but the records' heads is read.

        Raises:
            ValueError: a record is damaged, naming file and offset.
        """
        words = np.frombuffer(self.bytes, "<u4", self.size // 4)
        # Shorter files have no record that can be read at once.
        words = words if len(words) >= _HEAD_WORDS else np.zeros(_HEAD_WORDS, "<u4")
        first = offsets // 4
        # What a head may need is there, or the careful way is taken.
        inside = (offsets >= 0) & (offsets % 4 == 0)
        inside &= (first + _HEAD_WORDS) * 4 <= self.size
        first = np.where(inside, first, 0)[:, None] + np.arange(_HEAD_WORDS)
        heads = words[first]
        floats = heads.view("<f4")
        kind, length = heads[:, 1] >> _LENGTH_BITS, (heads[:, 1] & LONGEST).astype(np.int64)
        flags = heads[:, 2].astype(np.int64)
        image_bytes = length - HEAD.size - 4 * flags
        plain = inside & (heads[:, 0] == MAGIC) & (kind <= FIRST) & (image_bytes >= 0)
        plain &= offsets + _WORDS.size + length <= self.size
        labels = np.full((len(offsets), 2), np.nan, np.float32)
        labels[:, 0] = np.where(flags == 0, floats[:, 3], floats[:, 8])
        labels[:, 1] = np.where(flags > 1, floats[:, 9], np.nan)
        numbers = heads[:, 4] | heads[:, 5].astype(np.uint64) << np.uint64(32)
        # A record in parts has a magic after its first, which only an image holds.
        image_bytes += (kind == FIRST).astype(np.int64)
        # Any number of places can name one long record.
        budget = Budget(self.size, str(self.path))
        for number in np.flatnonzero(~plain):
            offset = int(offsets[number])
            try:
                payload = self.read(offset)
                budget.take(len(payload))
                label, image = split_record(payload)
            except ValueError as error:
                if str(self.path) in str(error):
                    raise
                raise self._damaged(offset, str(error)) from None
            label = np.ravel(label)
            labels[number] = label[0], label[1] if len(label) > 1 else np.nan
            numbers[number] = HEAD.unpack_from(payload)[2]
            image_bytes[number] = len(image)
        return RecordHeads(labels, numbers, image_bytes)

    def offsets(self) -> Iterator[int]:
        """Where every record begins, found by walking through the file.

        Raises:
            ValueError: a record is damaged or cut off.
        """
        place = 0
        while place < self.size:
            begins = place
            while True:
                kind, start, length = self._head(place)
                place = start + -(-length // 4) * 4
                if kind in (WHOLE, LAST):
                    break
            yield begins

    def _head(self, offset: int) -> tuple[int, int, int]:
        """Kind, payload's start and length."""
        start = offset + _WORDS.size
        if not 0 <= offset <= self.size - _WORDS.size:
            raise self._damaged(offset, f"the file has {self.size} bytes")
        magic, word = _WORDS.unpack_from(self.bytes, offset)
        if magic != MAGIC:
            raise self._damaged(offset, f"no record begins there (0x{magic:08x})")
        length = word & LONGEST
        if start + length > self.size:
            raise self._damaged(offset, f"its {length} bytes reach beyond the end of the file")
        return word >> _LENGTH_BITS, start, length

    def _damaged(self, offset: int, reason: str) -> ValueError:
        return ValueError(
            f"{self.path}: damaged record at byte {offset}: {reason}; fetch or copy the file again"
        )


class RecordWriter:
    """Writes records one after another, byte for byte as MXNet does.

    Args:
        path: the file, replaced if there is one.
    """

    def __init__(self, path: str | Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - open as long as the writer
        self._offset = 0

    def write(self, payload: bytes) -> int:
        """Add a record.

        Returns:
            where it begins, bytes.

        Raises:
            ValueError: longer than the format can say, half a gigabyte.
        """
        if len(payload) > LONGEST:
            raise ValueError(f"a record of {len(payload)} bytes; {LONGEST} is the most")
        begins, start = self._offset, 0
        for place in _magic_places(payload):
            self._part(FIRST if start == 0 else MIDDLE, payload[start:place])
            start = place + 4
        self._part(LAST if start else WHOLE, payload[start:])
        return begins

    def _part(self, kind: int, payload: bytes) -> None:
        padding = b"\0" * (-len(payload) % 4)
        head = _WORDS.pack(MAGIC, kind << _LENGTH_BITS | len(payload))
        self._offset += self._file.write(head + payload + padding)

    def close(self) -> None:
        """Write everything to disk."""
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


def _magic_places(payload: bytes) -> Iterator[int]:
    """Multiples of four at which the payload holds the magic."""
    place = payload.find(_MAGIC_BYTES)
    while place >= 0:
        if place % 4 == 0:
            yield place
            place += 3
        place = payload.find(_MAGIC_BYTES, place + 1)


_INDEX = re.compile(rb"(?:\d{1,18}\t\d{1,18}\r?\n)*+(?:\d{1,18}\t\d{1,18})?")


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys, ascending, and offsets of an ``.idx`` file: a tab between them, a line each.

    Raises:
        ValueError: a line of another form, or a key twice, naming it.
    """
    try:
        text = read_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    fits = _INDEX.match(text)
    assert fits is not None
    if fits.end() != len(text):
        number = text.count(b"\n", 0, fits.end()) + 1
        line = text[text.rfind(b"\n", 0, fits.end()) + 1 :].split(b"\n", 1)[0]
        raise ValueError(
            f"{path}, line {number}: {line[:60]!r} is not a key and an offset with a tab "
            "between; remove the file to have it rebuilt from the records"
        )
    # Numbers and white space alone are left, which needs no Python object each.
    pairs = np.fromstring(text, np.int64, sep=" ").reshape(-1, 2)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    twice = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if len(twice):
        raise ValueError(
            f"{path}: key {pairs[twice[0], 0]} is there twice; "
            "remove the file to have it rebuilt from the records"
        )
    return pairs[:, 0], pairs[:, 1]


def write_index(path: str | Path, keys: Sequence[int], offsets: Sequence[int]) -> None:
    """Write an ``.idx`` file as MXNet does."""
    lines = (b"%d\t%d\n" % place for place in zip(keys, offsets, strict=True))
    Path(path).write_bytes(b"".join(lines))


HEAD = struct.Struct("<IfQQ")


def split_record(payload: bytes) -> tuple[np.ndarray, bytes]:
    """The label, () or (n,) float32, and the image of a record.

    Its head is ``flag, label, id, id2``; with a flag above 0 that many float32 follow instead.

    Raises:
        ValueError: the record is shorter than its head says.

    >>> label, image = split_record(join_record(1, 3.0, b"JPEG"))
    >>> float(label), image
    (3.0, b'JPEG')
    """
    if len(payload) < HEAD.size:
        raise ValueError(f"a head has {HEAD.size} bytes, the record {len(payload)}")
    count, label, _, _ = HEAD.unpack_from(payload)
    if count == 0:
        return np.float32(label), payload[HEAD.size :]  # type: ignore[return-value]
    if HEAD.size + 4 * count > len(payload):
        raise ValueError(f"{count} labels are announced in a record of {len(payload)} bytes")
    labels = np.frombuffer(payload, "<f4", count, HEAD.size)
    return labels, payload[HEAD.size + 4 * count :]


def join_record(key: int, label: float | np.ndarray, image: bytes = b"") -> bytes:
    """The payload of a record: a number as label, or an array of them."""
    if np.ndim(label) == 0:
        return HEAD.pack(0, float(label), key, 0) + image
    values = np.ascontiguousarray(label, "<f4")
    return HEAD.pack(len(values), 0.0, key, 0) + values.tobytes() + image
