"""Another project's weights: as read from a file, and as converted by an importer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from margrave.models.pixel_statistics import ColorOrder, PixelStatistic

State = Mapping[str, Tensor]
"""A state dict: tensors by name."""


class Checkpoint(dict[str, Tensor]):
    """A file's tensors by name, with more information about the file.

    Attributes:
        raw_keys: the tensors' names before wrapper prefixes such as ``module.`` were removed.
        other_keys: the file's top-level keys that do not name a tensor, such as ``epoch``.
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
        layout: the naming scheme of the file's tensors, such as ``adaface_ir``; ``own`` if the user
            specified the network, whose tensor names the file then uses.
        backbone: the network's specification ``{"kind": name, **settings}``, plain JSON.
        state: the network's tensors under Margrave's names; unknown tensors keep the file's names,
            so that :func:`margrave.models.load_strictly` reports them.
        notes: what was changed, left out or assumed, as messages for the user.
        head_weight: (C, D) class centers, or None if the file does not contain them.
        names: each submodule's name in Margrave -> its name in the file; empty if the file uses
            Margrave's names.
        mean, std: normalization of pixels in [0, 1], (pixel - mean) / std, in RGB order.
        color_order: the color order that the file's weights expect: stated by the user,
            or assumed.
    """

    layout: str
    backbone: dict[str, Any]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    head_weight: Tensor | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    mean: PixelStatistic = 0.5
    std: PixelStatistic = 0.5
    color_order: ColorOrder = "rgb"
