"""Backbones: face images in, unnormalised features out.

Every module of this package is imported here, so a new backbone is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from torch import nn

from margrave.backbones.contract import BACKBONES

__all__ = ["BACKBONES", "create"]

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
