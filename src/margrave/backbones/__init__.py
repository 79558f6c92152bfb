"""Backbones map face images to unnormalized features.

Every module of this package is imported here, so a new backbone needs only one new file.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from margrave.backbones.contract import BACKBONES
from margrave.backbones.moving_average import MomentumEncoder

__all__ = [
    "BACKBONES",
    "MomentumEncoder",
    "create",
    "create_for",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def create(spec: Mapping[str, Any]) -> nn.Module:
    """Build the backbone that ``{"kind": name, **settings}`` describes, with initial weights.

    The backbone maps (B, 3, height, width) RGB images in [-1, 1] to (B, embedding_size)
    unnormalized features. Under ``with torch.device("meta")``, no memory is allocated for the
    weights; :func:`margrave.models.load_strictly` can then load them.

    Raises:
        ValueError: the kind or a setting is unknown, a value is invalid, or the kind is an import
            path to something that is not an ``nn.Module`` class.

    >>> backbone = create({"kind": "mbf", "embedding_size": 128, "image_size": 64})
    >>> backbone.embedding_size
    128
    """
    kind = spec.get("kind")
    if isinstance(kind, str) and ":" in kind:
        component = BACKBONES.get(kind)
        # Check before calling it, because the specification may come from a file.
        if not (isinstance(component, type) and issubclass(component, nn.Module)):
            raise ValueError(
                f"backbone {kind!r} is not a torch.nn.Module class; give the path of one"
            )
    return BACKBONES.create(spec)


def create_for(state: Mapping[str, Tensor], spec: Mapping[str, Any], source: str) -> nn.Module:
    """Build the backbone that a file describes, if it has no more parameters than the file.

    A specification of a few characters can describe a network of any size. Therefore the backbone
    is first built on the meta device, where building stops with an error once there are more
    parameters than values in the file. Custom network code is not checked, because the user has
    chosen to trust it.

    Args:
        state: the file's weights.
        spec: the file's specification, see `create`.
        source: the file's name, for messages.

    Raises:
        ValueError: see `create`; or the network has more parameters than the file has values, or
            its sizes are invalid.
    """
    try:
        if ":" not in str(spec.get("kind")):
            count = sum(value.numel() for value in state.values())
            with torch.device("meta"), _limit_parameters(count, source):
                create(spec)
        return create(spec)
    # For example, a size exceeds 64 bits, or there is not enough memory.
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source}: its network cannot be built ({reason})") from error


@contextmanager
def _limit_parameters(count: int, source: str) -> Iterator[None]:
    """Context in which building a network with more than `count` parameters raises an error."""
    thread, remaining = threading.get_ident(), count

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal remaining
        # The hook also receives the parameters of modules that other threads build.
        if parameter is None or threading.get_ident() != thread:
            return
        remaining -= parameter.numel()
        if remaining < 0:
            raise ValueError(
                f"{source} is damaged: it describes a network with more parameters than the "
                f"{count} values in the file (at {type(module).__name__}.{name})"
            )

    handle = register_module_parameter_registration_hook(count_parameter)
    try:
        yield
    finally:
        handle.remove()
