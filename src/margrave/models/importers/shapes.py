"""Helpers for importers: rename tensors, and read settings from keys and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from margrave.models.contract import State


def rename(state: State, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename the submodules in a state dict's keys to Margrave's names.

    `names` maps each submodule's name in Margrave to its name in `state`.

    >>> import torch
    >>> list(rename({"input_layer.0.weight": torch.zeros(1)}, {"conv1": "input_layer.0"}))
    ['conv1.weight']
    """
    margrave_names = {theirs: ours for ours, theirs in names.items()}
    renamed = {}
    for key, tensor in state.items():
        module_name, dot, leaf = key.rpartition(".")
        renamed[f"{margrave_names.get(module_name, module_name)}{dot}{leaf}"] = tensor
    return renamed


def shape_of(
    state: State, key: str, num_dimensions: int, names: Mapping[str, str]
) -> tuple[int, ...]:
    """The shape of a tensor; settings of the network are inferred from it.

    Args:
        state: the tensors under Margrave's names.
        key: the tensor's key.
        num_dimensions: the required number of dimensions.
        names: each submodule's name in Margrave -> its name in the project, for error messages.

    Raises:
        ValueError: the tensor is missing or has a different number of dimensions.
    """
    module_name, dot, leaf = key.rpartition(".")
    project_key = f"{names.get(module_name, module_name)}{dot}{leaf}"
    if key not in state:
        raise ValueError(f"{project_key} is missing; its shape determines the network's settings")
    if state[key].dim() != num_dimensions:
        raise ValueError(
            f"{project_key} has shape {tuple(state[key].shape)}, "
            f"expected {num_dimensions} dimensions"
        )
    return tuple(state[key].shape)


def count_indices(keys: Iterable[str], prefix: str) -> int:
    """The length of a module list: the largest index after the prefix plus one, or 0 if none is.

    >>> count_indices(["layer1.0.bn1.weight", "layer1.2.bn1.weight"], "layer1.")
    3
    """
    indices = [key.removeprefix(prefix).split(".")[0] for key in keys if key.startswith(prefix)]
    return max((int(index) + 1 for index in indices if index.isdecimal()), default=0)


def square_side(count: int, tensor_name: str) -> int:
    """The side length of a square feature map with ``count`` positions.

    ``tensor_name`` is the tensor from which the count was inferred, for the error message.

    Raises:
        ValueError: the count is not a square number, or is 0.

    >>> square_side(49, "fc.weight")
    7
    """
    side = math.isqrt(max(count, 0))
    if side == 0 or side**2 != count:
        raise ValueError(f"{tensor_name}: {count} positions do not form a square map")
    return side
