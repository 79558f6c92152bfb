"""What an importer answers, and the renaming that importers share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]
Pixels = float | tuple[float, float, float]


class Checkpoint(dict[str, Tensor]):
    """A file's tensors by name, with what the names alone no longer show.

    Attributes:
        raw_keys: the tensors' names before wrappers' prefixes were taken off.
        beside: the keys of what lay beside the weights.
        notes: what was chosen or left out in reading, in words.
    """

    def __init__(
        self,
        tensors: State,
        raw_keys: Iterable[str] = (),
        beside: Iterable[str] = (),
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(tensors)
        self.raw_keys, self.beside, self.notes = tuple(raw_keys), tuple(beside), tuple(notes)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Another project's weights in Margrave's form.

    Attributes:
        layout: whose names they had.
        backbone: the specification that builds the network, plain JSON.
        state: the network's tensors; keys that no rule knows keep their names, so that
            :func:`margrave.checkpoints.load_strictly` names them with all else that does not fit.
        notes: what was changed, left out or assumed, in words.
        head_weight: (C, D) class centres, where the file holds them.
        names: the file's name of each of the network's submodules, where it differs.
        mean, deviation: of pixels in [0, 1] that the network was trained with, for RGB.
    """

    layout: str
    backbone: dict[str, Any]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    head_weight: Tensor | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    mean: Pixels = 0.5
    deviation: Pixels = 0.5


def rename(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The state with each submodule's name replaced, given theirs by ours.

    >>> import torch
    >>> list(rename({"input_layer.0.weight": torch.zeros(1)}, {"conv1": "input_layer.0"}))
    ['conv1.weight']
    """
    ours = {theirs: name for name, theirs in names.items()}
    renamed = {}
    for key, tensor in state.items():
        module_name, dot, leaf = key.rpartition(".")
        renamed[f"{ours.get(module_name, module_name)}{dot}{leaf}"] = tensor
    return renamed


def shape_of(state: State, key: str, dimensions: int, names: Mapping[str, str]) -> tuple[int, ...]:
    """Shape of a tensor that the network's settings are read from.

    Raises:
        ValueError: the key is missing or has another number of dimensions.
    """
    module_name, dot, leaf = key.rpartition(".")
    place = f"{names.get(module_name, module_name)}{dot}{leaf}"
    if key not in state:
        raise ValueError(f"{place} is missing; the network's settings are read from its shape")
    if state[key].dim() != dimensions:
        raise ValueError(
            f"{place} has shape {tuple(state[key].shape)}, expected {dimensions} dimensions"
        )
    return tuple(state[key].shape)


def count_indices(keys: Iterable[str], prefix: str) -> int:
    """One more than the largest number that follows a prefix; 0 if none does.

    >>> count_indices(["layer1.0.bn1.weight", "layer1.2.bn1.weight"], "layer1.")
    3
    """
    found = [key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)]
    return max((int(number) + 1 for number in found if number.isdecimal()), default=0)


def square_side(count: int, place: str) -> int:
    """Side of a square map of ``count`` places.

    Raises:
        ValueError: the count is no square.

    >>> square_side(49, "fc.weight")
    7
    """
    side = math.isqrt(max(count, 0))
    if side == 0 or side**2 != count:
        raise ValueError(f"{place}: {count} places make no square map")
    return side
