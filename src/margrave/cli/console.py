"""The terminal, which shows what files are called and never obeys it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != 10}
"""Whatever could move the cursor, colour, or rename the window; line breaks stay."""
CONTROLS |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""What turns the direction of text around."""
CONTROLS |= {code: f"\\x{code - 0xDC00:02x}" for code in range(0xDC80, 0xDD00)}
"""Bytes of file names that are no UTF-8, which cannot be printed."""


class Console(rich.console.Console):
    """A console of rich's that spells out control characters of what is printed."""

    def render(self, *args: Any, **kwargs: Any) -> Iterable[Segment]:
        """Segments as rich's own, those of text without control characters."""
        for segment in super().render(*args, **kwargs):
            text, style, control = segment
            yield segment if control else Segment(text.translate(CONTROLS), style)
