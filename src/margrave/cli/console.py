"""A console that escapes control characters, such as those in file names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

REPLACEMENTS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 10}
"""Code point of each replaced character -> the text printed in its place.

The first entries are for control characters, which could move the cursor or change colors. Line
breaks (code point 10) are not replaced.
"""
REPLACEMENTS |= {
    code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""These entries are for characters that change the direction of text."""
REPLACEMENTS |= {code: f"\\x{code - 0xDC00:02x}" for code in range(0xDC80, 0xDD00)}
"""These entries are for bytes of file names that are not valid UTF-8. Python represents them by
surrogate code points, which cannot be printed."""


class Console(rich.console.Console):
    """Rich's console, with control characters printed as escape sequences."""

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """Yield the segments that Rich renders, with control characters in their text escaped."""
        for segment in super().render(*args, **kwargs):
            text, style, control = segment
            # Segments with `control` are Rich's own commands to the terminal.
            yield segment if control else Segment(text.translate(REPLACEMENTS), style)
