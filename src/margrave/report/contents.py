"""The parts of a report page, before they become HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: plain text; the page escapes it.
        kind: ``verdict`` for a main result, ``note`` for a condition or caveat, else ``plain``.
    """

    text: str
    kind: Literal["plain", "verdict", "note"] = "plain"


@dataclass(frozen=True)
class TextBlock:
    """Preformatted text, hidden until the reader clicks its summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what it shows.
        columns: the columns' headings.
        rows: the cells' text, one cell per column in each row.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A Vega-Lite chart.

    Attributes:
        caption: what it shows and how to read it.
        spec: the Vega-Lite specification, with its data.
        table: the chart's numbers, for screen readers and for copying; None for no table.
    """

    caption: str
    spec: Mapping[str, Any]
    table: Table | None = None


@dataclass(frozen=True)
class Face:
    """A thumbnail.

    Attributes:
        image: (H, W, 3) RGB, uint8.
        label: the alternative text for screen readers.
    """

    image: np.ndarray
    label: str


@dataclass(frozen=True)
class Faces:
    """Groups of thumbnails: the two sides of a pair, or the images of a class.

    Attributes:
        caption: what they show.
        groups: each group's faces, and the text below them.
    """

    caption: str
    groups: Sequence[tuple[Sequence[Face], str]]


@dataclass(frozen=True)
class Lab:
    """The margin lab.

    Attributes:
        tables: the losses' curves, from ``margrave.report.lab.lab_tables``.
        charts: the charts' specs without data, from ``margrave.report.lab_charts.lab_charts``.
    """

    tables: Mapping[str, Any]
    charts: Mapping[str, Any]


Block = Text | TextBlock | Table | Chart | Faces | Lab


@dataclass(frozen=True)
class Section:
    """A titled part of the page; the page leaves out a section without blocks."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    """A page with its title, a line below the title, and its sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]
