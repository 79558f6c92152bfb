"""Every registered loss, statistic and head is exported by its package, and nothing else is."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from margrave import heads, losses, statistics
from margrave.heads import HEADS, Head
from margrave.losses import LOSSES, Loss
from margrave.registry import Registry
from margrave.statistics import STATISTICS, Statistic


@pytest.mark.parametrize(
    ("package", "registry", "contract"),
    [(losses, LOSSES, Loss), (statistics, STATISTICS, Statistic), (heads, HEADS, Head)],
)
def test_exports_are_the_registered_classes(
    package: ModuleType, registry: Registry[Any], contract: type
) -> None:
    exported = {getattr(package, name) for name in package.__all__}
    classes = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, contract)}
    assert classes == {registry.get(name) for name in registry} | {contract}
    assert all(kind.__module__.startswith(f"{package.__name__}.") for kind in classes)
