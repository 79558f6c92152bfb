"""List the files in an untrusted tar archive, with their byte ranges.

Python's tarfile trusts the lengths in an archive, so a damaged archive can make it exhaust memory,
recurse or seek backwards. This module reads only the members' names and byte ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from margrave.files.text import MAX_DIGITS

BLOCK = 512
"""Bytes of a header; a member's content is padded to a multiple of this."""
MAX_NAME_BYTES = 2**16
"""Maximum size of a GNU long name or a pax header."""
# The positions of a header's fields, in bytes. Only ustar headers have a prefix: the path is then
# "prefix/name".
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_MAGIC, _PREFIX = slice(257, 263), slice(345, 500)
# Member types (byte 156 of a header): regular files, GNU long names, pax headers.
_REGULAR = (b"0", b"\0", b"7")
_LONG_NAME, _PAX = b"L", b"x"
_SKIPPED = (b"1", b"2", b"3", b"4", b"5", b"6", b"g", b"K")
"""Skipped member types: links, devices, folders, pipes, and metadata of the archive or of links."""

ReadRange = Callable[[int, int], bytes]
"""(offset, count) -> `count` bytes of the archive from `offset`; fewer at its end."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: its name, and its content's offset and size in bytes."""

    name: str
    offset: int
    size: int


def tar_members(read: ReadRange, length: int, archive: str) -> Iterator[Member]:
    """Yield the regular files of a ustar, GNU or pax archive, in order.

    Args:
        read: reads bytes of the archive.
        length: size of the archive in bytes.
        archive: the archive's name, for messages.

    Raises:
        ValueError: the file is not a tar archive, is damaged or truncated, or contains sparse
            files; the message gives the byte offset.
    """
    position = 0
    # Path and size of the next regular file, given by a long name or a pax header before it.
    overrides: dict[str, bytes] = {}
    while True:
        header = read(position, BLOCK)
        where = f"{archive}, byte {position}"
        if len(header) < BLOCK:
            raise ValueError(f"{where}: the archive has no end mark; download it again")
        if not any(header):
            return
        checksum = header[_CHECKSUM]
        # The checksum is the sum of the header's bytes, with spaces in place of the checksum.
        if _parse_number(checksum, where) != sum(header) - sum(checksum) + 8 * ord(" "):
            raise ValueError(f"{where} is not a valid tar header; download the archive again")
        member_type, start = header[156:157], position + BLOCK
        size = _parse_number(header[_SIZE], where)
        if member_type in _REGULAR and "size" in overrides:
            size = _parse_decimal(overrides["size"], where)
        if size > length - start:
            raise ValueError(
                f"{where}: a member has {size} bytes in an archive of {length}; the archive is "
                "truncated or damaged: download it again"
            )
        if member_type in (_LONG_NAME, _PAX):
            if size > MAX_NAME_BYTES:
                raise ValueError(
                    f"{where}: a name or pax header has {size} bytes; the archive is damaged: "
                    "download it again"
                )
            content = read(start, size)
            overrides |= (
                _parse_pax(content, where)
                if member_type == _PAX
                else {"path": content.rstrip(b"\0")}
            )
        elif member_type in _REGULAR:
            name = overrides.get("path") or _member_name(header)
            yield Member(name.decode("utf-8", "replace"), start, size)
            overrides = {}
        elif member_type in _SKIPPED:
            # Metadata can be between the overrides and their file; other members use up overrides.
            overrides = overrides if member_type in (b"g", b"K") else {}
        else:
            raise ValueError(
                f"{where}: members of type {member_type!r} are not supported; pack the shard again "
                "without sparse files"
            )
        position = start + -(-size // BLOCK) * BLOCK


def _member_name(header: bytes) -> bytes:
    name = header[_NAME].split(b"\0")[0]
    prefix = header[_PREFIX].split(b"\0")[0] if header[_MAGIC] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _parse_number(field: bytes, where: str) -> int:
    """Parse a number in a header: octal digits or, for large numbers, 0x80 and big-endian bytes."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not all(digit in b"01234567" for digit in digits):
        raise ValueError(f"{where}: {field!r} is not a valid number; download the archive again")
    return int(digits or b"0", 8)


def _parse_decimal(digits: bytes, where: str) -> int:
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise ValueError(f"{where}: {digits[:20]!r} is not a valid size; the archive is damaged")
    return int(digits)


def _parse_pax(content: bytes, where: str) -> dict[str, bytes]:
    """Parse pax records, ``length key=value\\n``; return only ``path`` and ``size``.

    The length is that of the whole record, including its own digits and the line feed.
    """
    fields: dict[str, bytes] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = _parse_decimal(digits, where)
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or content[length - 1 : length] != b"\n":
            raise ValueError(f"{where}: a pax record is malformed; the archive is damaged")
        if key in (b"path", b"size"):
            fields[key.decode()] = value
        elif key.startswith(b"GNU.sparse"):
            raise ValueError(
                f"{where}: sparse members are not supported; pack the shard again without them"
            )
        content = content[length:]
    return fields
