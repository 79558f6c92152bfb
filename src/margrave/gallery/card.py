"""The card of a gallery: the model and the format of its vectors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from margrave.files import read_json
from margrave.registry import suggest

FORMAT_VERSION = 1
MAX_DIMENSION = 16384
"""Maximum number of components of a vector."""

Fusion = Literal["norm-weighted", "mean"]


@dataclass(frozen=True, kw_only=True)
class GalleryCard:
    """The model and format of a gallery's vectors; prevents mixing the vectors of two models.

    Attributes:
        weights: digest of the model's weights.
        model: the model's name, shown to users.
        preparation: how images are prepared: image size, mean, std, flips, …
        dimension: D, the number of components of a vector.
        fusion: how several images of a person become one vector: ``norm-weighted`` sums the raw
            embeddings, so that good images, which have larger norms, count more; ``mean`` sums unit
            embeddings.
        keep_images: True keeps aligned crops, which ``margrave gallery re-embed`` needs.
        half: True stores vectors as float16, False as float32.
        thresholds: the operating points from the model's card, each as a JSON mapping.
        format_version: version of the card's format.

    Raises:
        ValueError: a field has an invalid value.

    >>> GalleryCard(weights="ab12", dimension=512).fusion
    'norm-weighted'
    """

    weights: str
    dimension: int
    model: str = ""
    preparation: Mapping[str, Any] = field(default_factory=dict)
    fusion: Fusion = "norm-weighted"
    keep_images: bool = False
    half: bool = False
    thresholds: Sequence[Mapping[str, Any]] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if type(self.dimension) is not int or not 0 < self.dimension <= MAX_DIMENSION:
            raise ValueError(f"dimension = {self.dimension!r:.30}, must be 1 to {MAX_DIMENSION}")
        if self.fusion not in ("norm-weighted", "mean"):
            raise ValueError(f"fusion = {self.fusion!r:.30}; choices: mean, norm-weighted")
        field_types = {"weights": str, "model": str, "keep_images": bool, "half": bool}
        for name, field_type in field_types.items():
            if not isinstance(getattr(self, name), field_type):
                raise ValueError(
                    f"{name} = {getattr(self, name)!r:.60}, must be {field_type.__name__}"
                )
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        if not isinstance(self.preparation, Mapping):
            raise ValueError(f"preparation = {self.preparation!r:.60}, must be a mapping")

    def to_json(self) -> str:
        """The card as JSON, the form in which galleries store it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, place: str) -> GalleryCard:
        """Read a card written by `to_json`.

        Args:
            text: the card as JSON.
            place: the gallery's name in messages.

        Raises:
            ValueError: the text is not a card, has another version or has unknown fields; the
                message names the gallery.
        """
        fields = read_json(text, f"{place}: its card")
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: its card is damaged (not a mapping)")
        version = fields.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{place} has format_version {version!r:.20}, but this version of Margrave reads "
                f"{FORMAT_VERSION}; use the version of Margrave that wrote it"
            )
        known = cls.__dataclass_fields__
        if unknown := [name for name in fields if name not in known]:
            raise ValueError(
                f"{place}: its card has an unknown field {unknown[0]!r}; "
                f"{suggest(unknown[0], known)}"
            )
        try:
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place}: its card is invalid: {error}") from error

    def check_same_model(self, other: GalleryCard, place: str) -> None:
        """Check that a model's embeddings can be compared with the vectors of this card's gallery.

        Args:
            other: the card that a new gallery of the model would have.
            place: the gallery's name in messages.

        Raises:
            ValueError: the weights, the dimension or the preparation of images differ; the message
                names the differing fields.
        """
        fields, other_fields = json.loads(self.to_json()), json.loads(other.to_json())
        differing = [
            name
            for name in ("weights", "dimension", "preparation")
            if fields[name] != other_fields[name]
        ]
        if differing:
            raise ValueError(
                f"{place} holds vectors of another model ({self.model or self.weights[:12]}), with "
                f"different {', '.join(differing)}; use that model, or convert the gallery to the "
                "new model: margrave gallery re-embed"
            )
