"""Numbers with their nouns, for messages."""

from __future__ import annotations

IRREGULAR = {"identity": "identities", "person": "people"}


def quantity(number: int, noun: str) -> str:
    """A number with its noun in the singular or plural.

    >>> quantity(1, "image"), quantity(1234, "identity"), quantity(0, "person")
    ('1 image', '1,234 identities', '0 people')
    """
    return f"{number:,} {noun if number == 1 else IRREGULAR.get(noun, f'{noun}s')}"
