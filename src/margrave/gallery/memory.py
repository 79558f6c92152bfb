"""A gallery in memory: the reference implementation, with which tests compare other galleries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from margrave.gallery.checks import (
    add_sums,
    checked_crops,
    checked_name,
    checked_queries,
    checked_record,
    checked_top_k,
    fuse_embeddings,
)
from margrave.gallery.contract import (
    Candidate,
    ErasureCheck,
    ForgetResult,
    Gallery,
    GalleryCard,
    GalleryStats,
    NoGallery,
    Person,
    PersonRecord,
    not_enrolled_error,
    now,
)


@dataclass
class _Entry:
    """A person, the (D,) sum of the person's embeddings, and the kept crops."""

    person: Person
    total: np.ndarray
    crops: list[bytes] = field(default_factory=list)


class MemoryGallery(Gallery):
    """People in a dictionary, which is lost when the process ends.

    Args:
        card: the card of the model whose vectors the gallery holds.

    >>> gallery = MemoryGallery(GalleryCard(weights="ab12", dimension=2))
    >>> gallery.add("Ann", np.array([[3.0, 4.0]])).images
    1
    >>> gallery.search(np.array([[0.0, 2.0]]))[0][0]
    Candidate(name='Ann', similarity=0.8)
    """

    place = "the gallery in memory"

    def __init__(self, card: GalleryCard) -> None:
        self.card = card
        self._people: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._people)

    def get(self, name: str) -> Person | None:
        """Return the person with exactly this name, or None."""
        entry = self._people.get(checked_name(name))
        return None if entry is None else entry.person

    def add(
        self,
        name: str,
        embeddings: np.ndarray,
        *,
        crops: Sequence[bytes] = (),
        replace: bool = False,
    ) -> Person:
        """Enroll a person, or add images to an enrolled person."""
        name, total = checked_name(name), fuse_embeddings(embeddings, self.card)
        kept_crops = checked_crops(crops, len(embeddings), self.card)
        previous = None if replace else self._people.get(name)
        if previous is not None:
            total = add_sums(previous.total, total)
            kept_crops = [*previous.crops, *kept_crops]
        images = len(embeddings) + (0 if previous is None else previous.person.images)
        person = Person(name=name, images=images, enrolled=now())
        self._people[name] = _Entry(person, total, kept_crops)
        return person

    def search(self, queries: np.ndarray, top_k: int = 10) -> list[list[Candidate]]:
        """Find the people most similar to each query, most similar first."""
        query_units, top_k = checked_queries(queries, self.card), checked_top_k(top_k)
        if not self._people:
            return [[] for _ in query_units]
        names = sorted(self._people)
        totals = np.array([self._people[name].total for name in names])
        units = totals / np.linalg.norm(totals, axis=1, keepdims=True)
        # Other galleries round to 6 decimals, because they compute in float32. Round here, too.
        scores = (query_units.astype(np.float64) @ units.T).round(6)
        # A stable sort leaves people with equal similarities sorted by name.
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [
                Candidate(name=names[index], similarity=float(query_scores[index]))
                for index in indices
            ]
            for query_scores, indices in zip(scores, nearest, strict=True)
        ]

    def forget(self, name: str) -> ForgetResult:
        """Remove a person."""
        entry = self._people.pop(checked_name(name), None)
        if entry is None:
            raise not_enrolled_error(name, self)
        return ForgetResult(
            name=entry.person.name,
            crops=len(entry.crops),
            erased=True,
            explanation="removed from memory; nothing was on a disk",
        )

    def people(self) -> Iterator[Person]:
        """Iterate over all people, sorted by name."""
        yield from (self._people[name].person for name in sorted(self._people))

    def vector(self, name: str) -> np.ndarray:
        """Return a person's vector: (D,) float64, the sum of the images' embeddings."""
        entry = self._people.get(checked_name(name))
        if entry is None:
            raise not_enrolled_error(name, self)
        return entry.total.copy()

    def crops(self, name: str) -> list[bytes]:
        """Return a person's kept crops as encoded images."""
        entry = self._people.get(checked_name(name))
        if entry is None:
            raise not_enrolled_error(name, self)
        return list(entry.crops)

    def restore(self, records: Iterable[PersonRecord]) -> int:
        """Store people with their vectors unchanged."""
        names = set()
        for record in records:
            checked = checked_record(record, self.card)
            entry = _Entry(checked.person, checked.vector, list(checked.crops))
            self._people[checked.person.name] = entry
            names.add(checked.person.name)
        return len(names)

    def stats(self) -> GalleryStats:
        """Count people and images."""
        entries = self._people.values()
        return GalleryStats(
            people=len(entries),
            images=sum(entry.person.images for entry in entries),
            crops=sum(len(entry.crops) for entry in entries),
            bytes=None,
            store="memory",
        )

    def verify_erasure(self, traces: Sequence[bytes] = ()) -> ErasureCheck:
        """Report that nothing is on a disk."""
        return ErasureCheck(complete=True, findings=("nothing is on a disk",))

    def set_thresholds(self, thresholds: Sequence[Mapping[str, Any]]) -> None:
        """Replace the operating points in the card."""
        self.card = replace(self.card, thresholds=thresholds)

    def close(self) -> None:
        """Do nothing: there are no files or connections."""


class MemoryStore:
    """Creates galleries in memory."""

    def create(self, address: str, card: GalleryCard, key: str | None) -> Gallery:
        """Create a new, empty gallery."""
        del address, key
        return MemoryGallery(card)

    def open(self, address: str, key: str | None) -> Gallery:
        """Raise `NoGallery`: a gallery in memory cannot be opened again."""
        del key
        raise NoGallery(f"{address}: a gallery in memory cannot be opened again; create a new one")
