"""A memory limit for parsing a file: the file's size plus a fixed allowance."""

from __future__ import annotations

ALLOWANCE = 512 * 2**20
"""Bytes that parsing a file may allocate in addition to the file's size."""


class Budget:
    """The bytes that parsing one file may allocate, shared by all parsers of the file.

    A few bytes of a file can request large allocations, by declaring large lengths or by copying
    the same value repeatedly. Parsers charge each allocation before making it, so memory and time
    stay linear in the file's size.

    Args:
        size: file size in bytes.
        name: the file's name, for messages.
        allowance: bytes allowed in addition to the size.

    >>> budget = Budget(size=10, name="small.bin", allowance=90)
    >>> budget.charge(100)
    >>> budget.charge(1)
    Traceback (most recent call last):
        ...
    ValueError: small.bin has 10 bytes but would take more than 100 bytes of memory; it is rejected
    """

    def __init__(self, size: int, name: str, allowance: int = ALLOWANCE) -> None:
        self.name = name
        self.remaining = size + allowance
        self._size, self._limit = size, size + allowance

    def charge(self, count: int) -> None:
        """Deduct `count` bytes, which the caller is about to allocate.

        Raises:
            ValueError: the limit is exceeded; the message names the file.
        """
        self.remaining -= count
        if self.remaining < 0:
            raise ValueError(
                f"{self.name} has {self._size} bytes but would take more than {self._limit} bytes "
                "of memory; it is rejected"
            )
