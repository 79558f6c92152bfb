"""Loads weights into a module: all of them, or none if they do not fit."""

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
    """Fill a module's parameters and buffers from a state dict, which must fit exactly.

    Values are converted to the module's dtypes. A module on the meta device may share the tensors'
    memory; any other module copies the values. Batch norms' ``num_batches_tracked`` may be missing,
    as in old files; it is then 0.

    Args:
        module: the module to fill.
        state: tensors by their names in the module.
        source: the state's origin, for error messages.
        names: each submodule's name in the module -> its name in the file
            (:attr:`margrave.models.Imported.names`), for error messages.

    Raises:
        ValueError: the state does not fit; the message lists all missing keys, unexpected keys,
            wrong shapes and unusable tensors. The module is not changed.

    >>> import torch
    >>> load_strictly(nn.Linear(2, 1), {"weight": torch.ones(1, 3)}, "example.pth")
    Traceback (most recent call last):
        ...
    ValueError: example.pth does not fit Linear
      1 missing: bias
      1 of the wrong shape: weight is (1, 3), expected (1, 2)
    """
    expected = module.state_dict()
    module_on_meta = any(tensor.is_meta for tensor in expected.values())
    missing = [
        _displayed_key(key, names)
        for key in expected
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [_displayed_key(key, names) for key in state if key not in expected]
    misshapen = [
        f"{_displayed_key(key, names)} is {tuple(state[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    unusable = [
        _displayed_key(key, names)
        for key in expected
        if key in state and _is_unusable(state[key], module_on_meta)
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
    complete_state = {
        key: state[key].detach().to(tensor.dtype)
        if key in state
        else torch.zeros_like(tensor, device="cpu")
        for key, tensor in expected.items()
    }
    module.load_state_dict(complete_state, assign=module_on_meta)


def _is_unusable(tensor: Tensor, module_on_meta: bool) -> bool:
    """Whether a tensor is sparse, quantized or complex, or has no data although the module has."""
    has_unsupported_type = (
        tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex()
    )
    return has_unsupported_type or (tensor.is_meta and not module_on_meta)


def _displayed_key(key: str, names: Mapping[str, str] | None) -> str:
    """The key for messages: its name in the file, then its name in the module if they differ."""
    module_name, dot, leaf = key.rpartition(".")
    name_in_file = (names or {}).get(module_name)
    return key if name_in_file is None else f"{name_in_file}{dot}{leaf} (in the module: {key})"
