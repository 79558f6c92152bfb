"""How much a file may ask for: no more than its own size and a fixed allowance together."""

from __future__ import annotations

ALLOWANCE = 512 * 2**20
"""Bytes that reading any file may take beyond the file's own size."""


class Budget:
    """Bytes that may still be taken in reading one file. All readers of the file share it.

    What a few bytes can ask for (copies of copies, lengths, repetitions) is charged before it is
    made, so memory and time stay linear in the file's size.

    Args:
        size: of the file, in bytes.
        name: what messages call it.
        allowance: bytes beyond its size.

    >>> budget = Budget(size=10, name="small.bin", allowance=90)
    >>> budget.take(100)
    >>> budget.take(1)
    Traceback (most recent call last):
        ...
    ValueError: small.bin has 10 bytes and asks for more than 100; it is refused
    """

    def __init__(self, size: int, name: str, allowance: int = ALLOWANCE) -> None:
        self.name = name
        self.left = size + allowance
        self._size, self._limit = size, size + allowance

    def take(self, count: int) -> None:
        """Charge `count` bytes.

        Raises:
            ValueError: the file has asked for too much, naming it.
        """
        self.left -= count
        if self.left < 0:
            raise ValueError(
                f"{self.name} has {self._size} bytes and asks for more than {self._limit}; "
                "it is refused"
            )
