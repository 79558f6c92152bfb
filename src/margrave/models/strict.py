"""Loads weights into a module, all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from margrave.files import listed


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Fill a module's parameters and buffers from a state, which must fit it exactly.

    A module on the meta device takes over the tensors, converted to its own dtypes; any other
    module copies them. Batch norms' ``num_batches_tracked`` may be missing, as in old files.

    Args:
        module: the module to fill.
        state: tensors by the module's key names.
        source: the state's origin, for error messages.
        names: the module's name of each submodule -> the file's
            (:attr:`margrave.models.Imported.names`), for error messages.

    Raises:
        ValueError: the state does not fit; the message lists all missing keys, unexpected keys and
            wrong shapes. The module is not changed.

    >>> import torch
    >>> load_strictly(nn.Linear(2, 1), {"weight": torch.ones(1, 3)}, "example.pth")
    Traceback (most recent call last):
        ...
    ValueError: example.pth does not fit Linear
      1 missing: bias
      1 of the wrong shape: weight is (1, 3), expected (1, 2)
    """
    expected = module.state_dict()
    on_meta = any(tensor.is_meta for tensor in expected.values())
    missing = [
        _in_file(key, names)
        for key in expected
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [_in_file(key, names) for key in state if key not in expected]
    misshapen = [
        f"{_in_file(key, names)} is {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    unusable = [
        _in_file(key, names)
        for key in expected
        if key in state and _is_unusable(state[key], on_meta)
    ]
    faults = [
        f"  {len(keys)} {fault}: {listed(keys)}"
        for fault, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", misshapen),
            ("sparse, quantized, complex or without data", unusable),
        )
        if keys
    ]
    if faults:
        raise ValueError("\n".join([f"{source} does not fit {type(module).__name__}", *faults]))
    filled = {
        key: state[key].detach().to(tensor.dtype)
        if key in state
        else torch.zeros_like(tensor, device="cpu")
        for key, tensor in expected.items()
    }
    module.load_state_dict(filled, assign=on_meta)


def _is_unusable(tensor: Tensor, on_meta: bool) -> bool:
    """Whether a tensor cannot be copied into an ordinary dense tensor of real numbers."""
    special = tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex()
    return special or (tensor.is_meta and not on_meta)


def _in_file(key: str, names: Mapping[str, str] | None) -> str:
    """A key as messages show it: by its name in the file, if that differs."""
    module_name, dot, leaf = key.rpartition(".")
    name_in_file = (names or {}).get(module_name)
    return key if name_in_file is None else f"{name_in_file}{dot}{leaf} (here {key})"
