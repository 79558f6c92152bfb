"""Another project's weights, as read from a file and as converted by an importer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from margrave.models.pixel_statistics import Pixels

State = Mapping[str, Tensor]


class Checkpoint(dict[str, Tensor]):
    """A file's tensors by name, with more information about the file.

    Attributes:
        raw_keys: the tensors' names including the prefixes of wrappers.
        other_keys: the keys of the file's entries that are not tensors.
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
        layout: the layout of the file's names.
        backbone: the network's specification, plain JSON.
        state: the network's tensors; unknown keys keep their names, so that
            :func:`margrave.models.load_strictly` reports them with everything else that does not
            fit.
        notes: what was changed, left out or assumed, as messages for the user.
        head_weight: (C, D) class centers, or None if the file does not hold them.
        names: the file's name of each submodule, if it differs from ours.
        mean, std: statistics used in training, for pixels in [0, 1] in RGB order.
    """

    layout: str
    backbone: dict[str, Any]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    head_weight: Tensor | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    mean: Pixels = 0.5
    std: Pixels = 0.5
