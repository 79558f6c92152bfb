"""Identity-disjoint training, validation and test parts of one image source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from margrave.data.contract import SOURCES
from margrave.data.sources import open_source
from margrave.data.splits import ImageSubset, split_identities

PARTS = ("train", "validation", "test")


@SOURCES.register("part")
class IdentityPart(ImageSubset):
    """The training, validation or test identities of another source.

    Args:
        images: the source's specification, ``{"kind": name, **settings}``.
        part: ``train``, ``validation`` or ``test``; no identity belongs to two parts.
        shares: fractions of the identities for training, validation and test; they sum to 1.
        seed: seeds the assignment of identities to parts; use the same seed for all three parts.

    Raises:
        ValueError: the shares do not sum to 1, or a part would have no identities.

    >>> faces = {"kind": "synthetic", "num_identities": 10, "images_per_identity": 2}
    >>> len(IdentityPart(images=faces, part="test")), len(IdentityPart(images=faces, part="train"))
    (4, 14)
    """

    def __init__(
        self,
        *,
        images: Mapping[str, Any],
        part: Literal["train", "validation", "test"],
        shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
        seed: int = 0,
    ) -> None:
        source = open_source(images, labeled=True)
        parts = split_identities(source.labels, shares, seed)
        super().__init__(source, parts[PARTS.index(part)])
