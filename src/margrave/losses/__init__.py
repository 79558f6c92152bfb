"""Margin losses: pure functions of cosines, one file each, found by being in this folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from margrave.losses.contract import LOSSES, Context, Loss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from margrave.losses.compose import compose  # noqa: E402


def create(spec: Mapping[str, Any]) -> Loss:
    """The loss that ``{"kind": name, **hyperparameters}`` describes.

    >>> create({"kind": "arcface", "margin": 0.3}).margin
    0.3
    """
    kind = LOSSES.get(spec["kind"]) if isinstance(spec.get("kind"), str) else Loss
    if not (isinstance(kind, type) and issubclass(kind, Loss)):
        raise ValueError(f"{spec['kind']!r} is no margrave.losses.Loss; derive your class from it")
    return LOSSES.create(spec)


def __getattr__(name: str) -> Any:
    """Every registered loss class under its own name: ``from margrave.losses import AdaFace``."""
    for kind in LOSSES:
        if LOSSES.get(kind).__name__ == name:
            return LOSSES.get(kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["LOSSES", "Context", "Loss", "compose", "create"]
