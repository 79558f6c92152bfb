"""The interface of importers, which know the tensor names and pixel statistics of a project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from margrave.models.contract import Checkpoint, State
from margrave.models.pixel_statistics import ColorOrder, PixelStatistic
from margrave.models.prefixes import strip_prefixes
from margrave.registry import Registry

Names = Mapping[str, str]
"""Margrave's name of each submodule -> the project's name."""

HEAD_PREFIXES = ("head.", "classifier.", "partial_fc.")
# CVLface's prefix for its networks.
WRAPPER = "net."


class Importer:
    """A layout: one project's tensor names and pixel statistics for one family of networks.

    Subclasses in this folder are registered by name; one from elsewhere is given as
    ``--layout my_module:MyImporter``. If keys match both an importer and its subclass, the subclass
    is used.

    Attributes:
        patterns: regular expressions; each must match the beginning of some key.
        color_order: color order of the pixels used in training.
        mean, std: statistics of these pixels in [0, 1], in this color order.
        source: where color order and statistics are documented.
        shared_with: projects whose files have the same keys and cannot be distinguished.
        first_convolution: Margrave's key of the weight that is applied to the pixels.
    """

    patterns: ClassVar[tuple[str, ...]] = ()
    color_order: ClassVar[ColorOrder] = "rgb"
    mean: ClassVar[PixelStatistic] = 0.5
    std: ClassVar[PixelStatistic] = 0.5
    source: ClassVar[str] = ""
    shared_with: ClassVar[str] = ""
    first_convolution: ClassVar[str] = "conv1.weight"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint's keys, without wrapper prefixes, have this layout."""
        return bool(self.patterns) and all(
            any(re.match(pattern, key) for key in checkpoint) for pattern in self.patterns
        )

    def split(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Separate the network's tensors from the head's, both under the project's names."""
        bare = strip_prefixes(checkpoint, (WRAPPER,))
        head = {key: bare[key] for key in bare if key.startswith(HEAD_PREFIXES)}
        return {key: bare[key] for key in bare if key not in head}, head

    def names(self, network: State) -> dict[str, str]:
        """Margrave's name of each submodule -> the project's; empty if they are the same."""
        return {}

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        """Infer the network's specification ``{"kind": name, **settings}`` from tensor shapes.

        Args:
            network: the tensors under Margrave's names.
            names: the result of `names`, for error messages.

        Raises:
            ValueError: a tensor that a setting is read from is missing or has a wrong shape.
        """
        raise NotImplementedError

    def assumptions(self, backbone: Mapping[str, Any]) -> tuple[str, ...]:
        """Assumptions about the network that no shape confirms, as messages for the user."""
        return ()


LAYOUTS: Registry[type[Importer]] = Registry("layout")


def create_importer(name: str) -> Importer:
    """Create the importer of a registered layout or an import path (``my_module:MyImporter``).

    Raises:
        ValueError: the layout or class does not exist.

    >>> create_importer("adaface_ir").color_order
    'bgr'
    """
    kind = LAYOUTS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, Importer)):
        raise ValueError(f"{name!r} must be a subclass of margrave.models.importers.Importer")
    return kind()
