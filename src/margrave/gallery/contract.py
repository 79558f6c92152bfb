"""The interface of all galleries, which hold named people with one vector per person."""

from __future__ import annotations

import difflib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from margrave.gallery.card import GalleryCard
from margrave.gallery.checks import (
    check_visible,
    checked_crops,
    checked_name,
    checked_queries,
    checked_record,
    checked_top_k,
    fuse_embeddings,
)
from margrave.gallery.records import (
    Candidate,
    ErasureCheck,
    ForgetResult,
    GalleryStats,
    Person,
    PersonRecord,
)

MAX_NAMES_COMPARED = 100_000
"""Maximum number of enrolled names that are compared with an unknown name to suggest one."""


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
    creates and opens it. Abstract methods whose names start with an underscore receive arguments
    that the public method of the same name has checked: names are normalized, see `checked_name`.
    The gallery must stay consistent if a method is interrupted at any moment. When a method
    returns, its changes are on disk.

    Attributes:
        card: the gallery's card, which describes the model and format of its vectors.
        place: the gallery's name in messages: its address, if it has one.
    """

    card: GalleryCard
    place: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of people."""

    def get(self, name: str) -> Person | None:
        """Return the person with exactly this name, or None."""
        return self._get(checked_name(name))

    @abstractmethod
    def _get(self, name: str) -> Person | None:
        """See `get`."""

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
        name, total = checked_name(name), fuse_embeddings(embeddings, self.card)
        check_visible(name)
        checked = checked_crops(crops, len(embeddings), self.card)
        return self._add(name, total, images=len(embeddings), crops=checked, replace=replace)

    @abstractmethod
    def _add(
        self, name: str, total: np.ndarray, *, images: int, crops: list[bytes], replace: bool
    ) -> Person:
        """See `add`.

        Args:
            name: the person's name.
            total: (D,) float64, the new images' embeddings, fused into one vector. `add_sums` adds
                it to the vector of an enrolled person.
            images: number of new images.
            crops: encoded images to keep, one per new image; or none.
            replace: True replaces the person's enrolled images, False adds to them.
        """

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
        units, top_k = checked_queries(queries, self.card), checked_top_k(top_k)
        return self._search(units, top_k) if len(units) and top_k else [[] for _ in units]

    @abstractmethod
    def _search(self, queries: np.ndarray, top_k: int) -> list[list[Candidate]]:
        """See `search`.

        Args:
            queries: (Q, D) float32 unit vectors, Q ≥ 1.
            top_k: number of people per query, at least 1.
        """

    def forget(self, name: str) -> ForgetResult:
        """Remove a person; overwrite every stored byte if the store can.

        Raises:
            ValueError: nobody is enrolled under this name; the message suggests a similar name.
        """
        return self._forget(checked_name(name))

    @abstractmethod
    def _forget(self, name: str) -> ForgetResult:
        """See `forget`."""

    @abstractmethod
    def people(self) -> Iterator[Person]:
        """Iterate over all people, sorted by name."""

    def vector(self, name: str) -> np.ndarray:
        """Return a person's vector: (D,) float64, the sum of the images' embeddings.

        Raises:
            ValueError: nobody is enrolled under this name.
        """
        return self._vector(checked_name(name))

    @abstractmethod
    def _vector(self, name: str) -> np.ndarray:
        """See `vector`."""

    def crops(self, name: str) -> list[bytes]:
        """Return a person's kept crops as encoded images; empty if none are kept."""
        return self._crops(checked_name(name))

    @abstractmethod
    def _crops(self, name: str) -> list[bytes]:
        """See `crops`."""

    @abstractmethod
    def stats(self) -> GalleryStats:
        """Count people, images and bytes."""

    @abstractmethod
    def verify_erasure(self, traces: Sequence[bytes] = ()) -> ErasureCheck:
        """Search the store for remains of forgotten people.

        Args:
            traces: additional bytes to search for, such as a name in UTF-8 or an image file.
        """

    def restore(self, records: Iterable[PersonRecord]) -> int:
        """Store people with their vectors unchanged, in batches; replace people of the same names.

        Args:
            records: people with vectors of this gallery's model.

        Returns:
            The number of people stored; two records of one name count once, and the last is kept.
        """
        return self._restore(checked_record(record, self.card) for record in records)

    @abstractmethod
    def _restore(self, records: Iterator[PersonRecord]) -> int:
        """See `restore`; the iterator raises ValueError at the first invalid record."""

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
