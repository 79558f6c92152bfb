"""The files in a tar archive and where their bytes lie, from headers that nobody vouches for.

Python's own reader is made to extract: it follows lengths of the archive's choosing into memory,
into recursion and backwards. Here a member is a name and a range inside the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
LONGEST_NAME = 2**16
_CHECKSUM = slice(148, 156)
_REGULAR = (b"0", b"\0", b"7")
_PASSED_OVER = (b"1", b"2", b"3", b"4", b"5", b"6", b"g", b"K")
"""Links, devices, folders, and what is said about the whole archive or about links."""

Read = Callable[[int, int], bytes]
"""From a byte on, so many bytes; fewer at the end of the file."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: its name, where its bytes begin, and how many they are."""

    name: str
    offset: int
    size: int


def tar_members(read: Read, length: int, archive: str) -> Iterator[Member]:
    """The regular files of a ustar, GNU or pax archive, in order.

    Args:
        read: gives bytes of the archive.
        length: of the archive, bytes.
        archive: what messages call it.

    Raises:
        ValueError: not an archive, damaged, truncated or sparse, naming the byte.
    """
    position, said = 0, {}
    while True:
        header = read(position, BLOCK)
        where = f"{archive}, byte {position}"
        if len(header) < BLOCK:
            raise ValueError(f"{where}: the archive ends without its end mark; fetch it again")
        if not any(header):
            return
        field = header[_CHECKSUM]
        if _number(field, where) != sum(header) - sum(field) + 8 * ord(" "):
            raise ValueError(f"{where} is no tar header, or a damaged one; fetch the archive again")
        kind, start = header[156:157], position + BLOCK
        size = _number(header[124:136], where)
        if kind in _REGULAR and "size" in said:
            size = _decimal(said["size"], where)
        if size > length - start:
            raise ValueError(
                f"{where}: a member of {size} bytes in an archive of {length}; it is truncated or "
                "damaged: fetch it again"
            )
        if kind in (b"L", b"x"):
            if size > LONGEST_NAME:
                raise ValueError(f"{where}: a name of {size} bytes; the archive is damaged")
            content = read(start, size)
            said |= _pax(content, where) if kind == b"x" else {"path": content.rstrip(b"\0")}
        elif kind in _REGULAR:
            name = said.get("path") or _name(header)
            yield Member(name.decode("utf-8", "replace"), start, size)
            said = {}
        elif kind in _PASSED_OVER:
            said = said if kind in (b"g", b"K") else {}
        else:
            raise ValueError(
                f"{where}: members of type {kind!r} are not read; pack the shard again without "
                "sparse files"
            )
        position = start + -(-size // BLOCK) * BLOCK


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, where: str) -> int:
    """Octal digits, or base 256 where they did not suffice."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not all(digit in b"01234567" for digit in digits):
        raise ValueError(f"{where}: {field!r} is no number of a tar header; fetch it again")
    return int(digits or b"0", 8)


def _decimal(digits: bytes, where: str) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise ValueError(f"{where}: a size of {digits[:20]!r}; the archive is damaged")
    return int(digits)


def _pax(content: bytes, where: str) -> dict[str, bytes]:
    """``length key=value\\n`` records; of interest are path and size."""
    found: dict[str, bytes] = {}
    while content:
        digits, _, _ = content.partition(b" ")
        length = _decimal(digits, where)
        key, equals, value = content[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or content[length - 1 : length] != b"\n":
            raise ValueError(f"{where}: broken pax records; the archive is damaged")
        if key in (b"path", b"size"):
            found[key.decode()] = value
        elif key.startswith(b"GNU.sparse"):
            raise ValueError(f"{where}: sparse members are not read; pack the shard again")
        content = content[length:]
    return found
