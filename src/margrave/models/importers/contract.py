"""The interface of importers. An importer knows a project's tensor names and pixel statistics."""

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
"""Each submodule's name in Margrave -> its name in the project."""

HEAD_PREFIXES = ("head.", "classifier.", "partial_fc.")
# CVLface's prefix for a network's tensors.
CVLFACE_PREFIX = "net."


class Importer:
    """Importer of one layout: a project's tensor names and pixel statistics for a network family.

    Margrave's subclasses are registered by name; select your own with
    ``--layout my_module:MyImporter``. If keys match both an importer and its subclass, the subclass
    is used.

    Attributes:
        patterns: regular expressions; a file matches if every pattern matches the beginning of some
            key.
        color_order: color order of the pixels used in training.
        mean, std: normalization used in training, (pixel - mean) / std, for pixels in [0, 1]. Three
            numbers are in the order of `color_order`.
        source: where the project documents color order, mean and std.
        shared_with: other projects whose files match too, because they have the same keys; text for
            the user, such as ``CVLface (RGB)``.
        first_convolution: Margrave's key of the first convolution's weight.
    """

    patterns: ClassVar[tuple[str, ...]] = ()
    color_order: ClassVar[ColorOrder] = "rgb"
    mean: ClassVar[PixelStatistic] = 0.5
    std: ClassVar[PixelStatistic] = 0.5
    source: ClassVar[str] = ""
    shared_with: ClassVar[str] = ""
    first_convolution: ClassVar[str] = "conv1.weight"

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint has this layout; its wrapper prefixes are already removed."""
        return bool(self.patterns) and all(
            any(re.match(pattern, key) for key in checkpoint) for pattern in self.patterns
        )

    def split(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split a checkpoint into (network's tensors, head's tensors).

        Both keep the project's names, but without CVLface's prefix ``net.``.
        """
        bare = strip_prefixes(checkpoint, (CVLFACE_PREFIX,))
        head = {key: bare[key] for key in bare if key.startswith(HEAD_PREFIXES)}
        return {key: bare[key] for key in bare if key not in head}, head

    def names(self, network: State) -> dict[str, str]:
        """Each submodule's name in Margrave -> its name in the project.

        Empty if the project uses Margrave's names.

        Args:
            network: the network's tensors under the project's names.
        """
        return {}

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        """Infer the network's specification ``{"kind": name, **settings}`` from tensor shapes.

        Args:
            network: the tensors under Margrave's names.
            names: the result of the method `names`, for error messages.

        Raises:
            ValueError: a tensor that determines a setting is missing or has a wrong shape.
        """
        raise NotImplementedError

    def assumptions(self, backbone: Mapping[str, Any]) -> tuple[str, ...]:
        """Assumptions about the network that no tensor shape confirms, as messages for the user."""
        return ()


LAYOUTS: Registry[type[Importer]] = Registry("layout")


def create_importer(name: str) -> Importer:
    """Create the importer of a registered layout or an import path (``my_module:MyImporter``).

    Raises:
        ValueError: the layout or class does not exist, or the class is not an `Importer`.

    >>> create_importer("adaface_ir").color_order
    'bgr'
    """
    importer_class = LAYOUTS.get(name)
    if not (isinstance(importer_class, type) and issubclass(importer_class, Importer)):
        raise ValueError(f"{name!r} must be a subclass of margrave.models.importers.Importer")
    return importer_class()
