"""Backbones: face images in, unnormalised features out.

Every module of this package is imported here, so a new backbone is one new file.
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

__all__ = ["BACKBONES", "create", "create_for"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def create(spec: Mapping[str, Any]) -> nn.Module:
    """Build the backbone that ``{"kind": name, **settings}`` describes, freshly initialised.

    The backbone maps (B, 3, height, width) RGB images in [-1, 1] to (B, embedding_size) features,
    not normalised. Under ``with torch.device("meta")`` it is built without any memory, to be
    filled by :func:`margrave.checkpoints.load_strictly`.

    Raises:
        ValueError: an unknown kind or setting, a value that does not fit, or an import path to
            something that is no ``nn.Module``.

    >>> backbone = create({"kind": "mbf", "embedding_size": 128, "image_size": 64})
    >>> backbone.embedding_size
    128
    """
    kind = spec.get("kind")
    if isinstance(kind, str) and ":" in kind:
        component = BACKBONES.get(kind)
        # Looked at before it is called: a specification may come from a file.
        if not (isinstance(component, type) and issubclass(component, nn.Module)):
            raise ValueError(f"backbone {kind!r} is no class of torch.nn.Module; name one")
    return BACKBONES.create(spec)


def create_for(state: Mapping[str, Tensor], spec: Mapping[str, Any], source: str) -> nn.Module:
    """The backbone that a file describes, which may not be larger than the weights beside it.

    A few characters can describe a network of any size; it is built without memory first, and no
    further than its weights go. A network of somebody's own is a program that the user trusts.

    Args:
        state: the file's weights.
        spec: the file's description, as for `create`.
        source: what messages call the file.

    Raises:
        ValueError: as `create`; or more parameters than the file has, or impossible sizes.
    """
    try:
        if ":" not in str(spec.get("kind")):
            count = sum(value.numel() for value in state.values())
            with torch.device("meta"), _parameters_at_most(count, source):
                create(spec)
        return create(spec)
    # Sizes beyond 64 bits, and memory that there is not.
    except (RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source}: its network cannot be built ({reason})") from error


@contextmanager
def _parameters_at_most(count: int, source: str) -> Iterator[None]:
    """While networks are built, refuse to go on beyond so many parameters."""
    thread, left = threading.get_ident(), count

    def charge(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is None or threading.get_ident() != thread:
            return
        left -= parameter.numel()
        if left < 0:
            raise ValueError(
                f"{source}: it describes a network of more than the {count} numbers in it; it is "
                f"damaged (at {type(module).__name__}.{name})"
            )

    handle = register_module_parameter_registration_hook(charge)
    try:
        yield
    finally:
        handle.remove()
