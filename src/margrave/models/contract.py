"""Another project's weights, as read from a file and as converted by an importer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from margrave.models.pixel_statistics import PixelStatistic

State = Mapping[str, Tensor]


class Checkpoint(dict[str, Tensor]):
    """A file's tensors by name, with more information about the file.

    Attributes:
        raw_keys: the tensors' names with wrapper prefixes such as ``module.``.
        other_keys: the file's other top-level keys, such as ``epoch``.
        notes: what was chosen or left out while reading, as messages for the user.
    """

    def __init__(
        self,
        tensors: State,
        raw_keys: Iterable[str] = (),
        other_keys: Iterable[str] = (),
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(tensors)
        self.raw_keys, self.other_keys, self.notes = (
            tuple(raw_keys),
            tuple(other_keys),
            tuple(notes),
        )


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Another project's weights, converted to Margrave's names and RGB.

    Attributes:
        layout: whose tensor names the file uses, such as ``adaface_ir``; ``own`` if they are the
            network's.
        backbone: the network's specification ``{"kind": name, **settings}``, plain JSON.
        state: the network's tensors by Margrave's names; unknown tensors keep the file's, so that
            :func:`margrave.models.load_strictly` reports them.
        notes: what was changed, left out or assumed, as messages for the user.
        head_weight: (C, D) class centers, or None if the file does not hold them.
        names: Margrave's name of each submodule -> the file's; empty if they are the same.
        mean, std: statistics of the training pixels, scaled to [0, 1], in RGB order.
    """

    layout: str
    backbone: dict[str, Any]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    head_weight: Tensor | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    mean: PixelStatistic = 0.5
    std: PixelStatistic = 0.5
