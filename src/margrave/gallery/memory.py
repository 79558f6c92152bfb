"""A gallery in memory: the reference implementation, with which tests compare other galleries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from margrave.gallery.card import GalleryCard
from margrave.gallery.checks import add_sums
from margrave.gallery.contract import Gallery, NoGallery, not_enrolled_error, now
from margrave.gallery.records import (
    Candidate,
    ErasureCheck,
    ForgetResult,
    GalleryStats,
    Person,
    PersonRecord,
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

    def _get(self, name: str) -> Person | None:
        entry = self._people.get(name)
        return None if entry is None else entry.person

    def _add(
        self, name: str, total: np.ndarray, *, images: int, crops: list[bytes], replace: bool
    ) -> Person:
        previous = None if replace else self._people.get(name)
        if previous is not None:
            total = add_sums(previous.total, total)
            images += previous.person.images
            crops = [*previous.crops, *crops]
        person = Person(name=name, images=images, enrolled=now())
        self._people[name] = _Entry(person, total, crops)
        return person

    def _search(self, queries: np.ndarray, top_k: int) -> list[list[Candidate]]:
        if not self._people:
            return [[] for _ in queries]
        names = sorted(self._people)
        totals = np.array([self._people[name].total for name in names])
        units = totals / np.linalg.norm(totals, axis=1, keepdims=True)
        # Other galleries round to 6 decimals, because they compute in float32. Round here, too.
        scores = (queries.astype(np.float64) @ units.T).round(6)
        # A stable sort leaves people with equal similarities sorted by name.
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [
                Candidate(name=names[index], similarity=float(query_scores[index]))
                for index in indices
            ]
            for query_scores, indices in zip(scores, nearest, strict=True)
        ]

    def _forget(self, name: str) -> ForgetResult:
        entry = self._entry(name)
        del self._people[name]
        return ForgetResult(
            name=entry.person.name,
            crops=len(entry.crops),
            erased=True,
            explanation="removed from memory; nothing was on a disk",
        )

    def people(self) -> Iterator[Person]:
        """Iterate over all people, sorted by name."""
        yield from (self._people[name].person for name in sorted(self._people))

    def _vector(self, name: str) -> np.ndarray:
        return self._entry(name).total.copy()

    def _crops(self, name: str) -> list[bytes]:
        return list(self._entry(name).crops)

    def _restore(self, records: Iterator[PersonRecord]) -> int:
        names = set()
        for record in records:
            name = record.person.name
            self._people[name] = _Entry(record.person, record.vector, list(record.crops))
            names.add(name)
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

    def _entry(self, name: str) -> _Entry:
        if name not in self._people:
            raise not_enrolled_error(name, self)
        return self._people[name]


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
