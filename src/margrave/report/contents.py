"""What a page of results is made of, before it becomes HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: plain text; it is escaped.
        kind: ``verdict`` for what the reader came for, ``note`` for conditions and caveats.
    """

    text: str
    kind: Literal["plain", "verdict", "note"] = "plain"


@dataclass(frozen=True)
class TextBlock:
    """Preformatted text behind a summary that opens it."""

    summary: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        caption: what it shows.
        columns: the columns' headings.
        rows: the cells as text, as many in each row as there are columns.
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
        table: the numbers in it, for readers without eyes and for copying; None if they are in
            another table.
    """

    caption: str
    spec: Mapping[str, Any]
    table: Table | None = None


@dataclass(frozen=True)
class Face:
    """A thumbnail: an RGB image with a line below it."""

    image: np.ndarray
    label: str


@dataclass(frozen=True)
class Faces:
    """Groups of thumbnails: the two sides of a pair, or the images of a class.

    Attributes:
        caption: what they show.
        groups: each group's faces and its label.
    """

    caption: str
    groups: Sequence[tuple[Sequence[Face], str]]


@dataclass(frozen=True)
class Lab:
    """The margin lab.

    Attributes:
        tables: the losses' curves, see ``margrave.report.lab.lab_tables``.
        charts: the charts to fill, see ``margrave.report.lab_charts.lab_charts``.
    """

    tables: Mapping[str, Any]
    charts: Mapping[str, Any]


Block = Text | TextBlock | Table | Chart | Faces | Lab


@dataclass(frozen=True)
class Section:
    """A titled part of the page; without blocks it is left out."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True)
class Page:
    """A page: title, what it is about, and sections."""

    title: str
    subtitle: str
    sections: Sequence[Section]
