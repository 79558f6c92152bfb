"""The doctor's findings and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["serious", "warning", "unchecked", "note"]
_ORDER = {"serious": 0, "warning": 1, "unchecked": 2, "note": 3}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault of the examined data or model, or useful information about it.

    Attributes:
        fault: identifier of the kind of finding, for programs.
        severity: ``serious``: the fault ruins a model. ``warning``: it costs accuracy or time.
            ``unchecked``: a check was not possible. ``note``: the finding is information.
        message: what is wrong, or the information, with the measured values.
        remedy: what to do about it.
        share: affected share of the images, pairs or tensors, in [0, 1]; findings of the same
            severity are sorted by it, the largest first.
        examples: examples of affected images, pairs or tensors.
        figures: the measured values, for programs.
    """

    fault: str
    severity: Severity
    message: str
    remedy: str
    share: float = 1.0
    examples: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Convert the finding to values for JSON."""
        return asdict(self)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings, worst first.

    >>> low = Finding(fault="b", severity="note", message="", remedy="")
    >>> high = Finding(fault="a", severity="serious", message="", remedy="")
    >>> [finding.fault for finding in ranked([low, high])]
    ['a', 'b']
    """
    return sorted(findings, key=lambda finding: (_ORDER[finding.severity], -finding.share))
