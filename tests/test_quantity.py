"""Numbers with their nouns."""

import pytest

from margrave.quantity import quantity


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (12345, "unreadable image", "12,345 unreadable images"),
        (1, "identity", "1 identity"),
        (2, "identity", "2 identities"),
        (2, "person", "2 people"),
    ],
)
def test_singular_and_plural(number: int, noun: str, expected: str) -> None:
    assert quantity(number, noun) == expected
