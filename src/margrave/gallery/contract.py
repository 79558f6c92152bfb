"""The interface of all galleries, which hold named people with one vector per person."""

from __future__ import annotations

import difflib
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from margrave.files import read_json
from margrave.registry import suggest

FORMAT_VERSION = 1
MAX_DIMENSION = 16384
"""Maximum number of components of a vector."""
MAX_NAMES_COMPARED = 100_000
"""Maximum number of enrolled names that are compared with an unknown name to suggest one."""

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


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person in a gallery.

    Attributes:
        name: any text of at most 512 bytes, see `checked_name`.
        images: number of images whose embeddings are summed in the person's vector.
        enrolled: time of the last enrollment, UTC in ISO 8601.
    """

    name: str
    images: int
    enrolled: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PersonRecord:
    """Everything that a gallery stores about a person.

    Attributes:
        person: name, number of images and time of enrollment.
        vector: (D,) the sum of the images' embeddings, see `GalleryCard.fusion`.
        crops: the kept crops, as encoded images; empty if none are kept.
    """

    person: Person
    vector: np.ndarray
    crops: Sequence[bytes] = ()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A person returned by a search.

    Attributes:
        name: the person's name.
        similarity: the cosine between the query and the person's vector, in [-1, 1].
    """

    name: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class ForgetResult:
    """The result of forgetting a person.

    Attributes:
        name: the person's name.
        crops: number of the person's kept crops.
        erased: True if a search of the gallery's files found no bytes of the vector, the name or
            the crops (a gallery in memory has no files). False if the person can no longer be
            found, but some bytes may still be on disk.
        explanation: one sentence that says what was removed and what is left.
    """

    name: str
    crops: int
    erased: bool
    explanation: str


@dataclass(frozen=True, kw_only=True)
class GalleryStats:
    """The size of a gallery.

    Attributes:
        people: number of people.
        images: number of enrolled images of all people.
        crops: number of kept crops.
        bytes: size on disk in bytes; None if unknown.
        store: the kind of store, with its address if it is a server.
        encrypted: True if names, vectors and crops are encrypted at rest.
    """

    people: int
    images: int
    crops: int
    bytes: int | None
    store: str
    encrypted: bool = False


@dataclass(frozen=True, kw_only=True)
class ErasureCheck:
    """The result of searching a gallery for remains of forgotten people.

    Attributes:
        complete: True if nothing is left; False if something is left, or the store cannot be
            searched completely.
        findings: the result of each check, as text.
    """

    complete: bool
    findings: tuple[str, ...]


class BadName(ValueError):
    """A person's name is not valid."""


class GalleryError(ValueError):
    """The gallery itself fails, or nobody is enrolled under a name.

    The message is for the gallery's operator, not for a server's clients: it may name the gallery's
    place and other people.
    """


class Unavailable(GalleryError):
    """The gallery cannot be used now: its server fails, or another process has locked its file."""


class NoGallery(ValueError):
    """There is no gallery at the address; a new one can be created there."""


class Gallery(ABC):
    """Named people and their vectors.

    Each kind of gallery implements the abstract methods, and has a `Store` in ``GALLERIES`` that
    creates and opens it. The gallery must stay consistent if a method is interrupted at any moment.
    When a method returns, its changes are on disk.

    Attributes:
        card: the gallery's card, which describes the model and format of its vectors.
        place: the gallery's name in messages: its address, if it has one.
    """

    card: GalleryCard
    place: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of people."""

    @abstractmethod
    def get(self, name: str) -> Person | None:
        """Return the person with exactly this name, or None."""

    @abstractmethod
    def add(
        self,
        name: str,
        embeddings: np.ndarray,
        *,
        crops: Sequence[bytes] = (),
        replace: bool = False,
    ) -> Person:
        """Enroll a person, or add images to an enrolled person.

        Args:
            name: the person's name, see `checked_name`.
            embeddings: (n, D) raw embeddings of n ≥ 1 images, see `GalleryCard.fusion`.
            crops: encoded images to keep, one per embedding; or none.
            replace: True replaces the person's enrolled images, False adds to them.

        Returns:
            The person as now enrolled.

        Raises:
            ValueError: the name, a shape or the number of crops is invalid; an embedding or the sum
                is zero, infinite or NaN; or crops are given to a gallery that keeps no images.
        """

    @abstractmethod
    def search(self, queries: np.ndarray, top_k: int = 10) -> list[list[Candidate]]:
        """Find the people most similar to each query, by exact search, most similar first.

        Args:
            queries: (Q, D) embeddings; their norms do not matter.
            top_k: number of people per query; fewer are returned if fewer are enrolled.

        Returns:
            One list of candidates per query.

        Raises:
            ValueError: the queries do not have dimension D, one is zero, infinite or NaN, or
                `top_k` is negative or not an integer.
        """

    @abstractmethod
    def forget(self, name: str) -> ForgetResult:
        """Remove a person; overwrite every stored byte if the store can.

        Raises:
            ValueError: nobody is enrolled under this name; the message suggests a similar name.
        """

    @abstractmethod
    def people(self) -> Iterator[Person]:
        """Iterate over all people, sorted by name."""

    @abstractmethod
    def vector(self, name: str) -> np.ndarray:
        """Return a person's vector: (D,) float64, the sum of the images' embeddings.

        Raises:
            ValueError: nobody is enrolled under this name.
        """

    @abstractmethod
    def crops(self, name: str) -> list[bytes]:
        """Return a person's kept crops as encoded images; empty if none are kept."""

    @abstractmethod
    def stats(self) -> GalleryStats:
        """Count people, images and bytes."""

    @abstractmethod
    def verify_erasure(self, traces: Sequence[bytes] = ()) -> ErasureCheck:
        """Search the store for remains of forgotten people.

        Args:
            traces: additional bytes to search for, such as a name in UTF-8 or an image file.
        """

    @abstractmethod
    def restore(self, records: Iterable[PersonRecord]) -> int:
        """Store people with their vectors unchanged, in batches; replace people of the same names.

        Args:
            records: people with vectors of this gallery's model.

        Returns:
            The number of people stored; two records of one name count once, and the last is kept.
        """

    def set_thresholds(self, thresholds: Sequence[Mapping[str, Any]]) -> None:
        """Replace the operating points in the card.

        Raises:
            ValueError: this kind of gallery cannot change them.
        """
        raise ValueError(f"{self.place}: the thresholds of this kind of gallery cannot be changed")

    @abstractmethod
    def close(self) -> None:
        """Close files and connections."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def not_enrolled_error(name: str, gallery: Gallery) -> GalleryError:
    """The error for a name that is not enrolled; suggests a similar name if there is one."""
    people = itertools.islice(gallery.people(), MAX_NAMES_COMPARED)
    similar = difflib.get_close_matches(name, [person.name for person in people], n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    return GalleryError(f"nobody is enrolled as {name!r} in {gallery.place}{hint}")


def now() -> str:
    """The current time: UTC in ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
