"""What the doctor finds, and which of it matters most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["serious", "warning", "unchecked", "note"]
_ORDER = {"serious": 0, "warning": 1, "unchecked": 2, "note": 3}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        fault: its name, for programs.
        severity: serious spoils a model, a warning costs accuracy or time; unchecked is what
            could not be looked at, and why; a note is for knowledge.
        said: what was seen, with its figures.
        remedy: what to do about it.
        share: how much is affected, in [0, 1]; ranks findings of one severity.
        examples: where it is to be seen.
        figures: the numbers behind it, for programs.
    """

    fault: str
    severity: Severity
    said: str
    remedy: str
    share: float = 1.0
    examples: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first.

    >>> low = Finding(fault="b", severity="note", said="", remedy="")
    >>> high = Finding(fault="a", severity="serious", said="", remedy="")
    >>> [finding.fault for finding in ranked([low, high])]
    ['a', 'b']
    """
    return sorted(findings, key=lambda finding: (_ORDER[finding.severity], -finding.share))
