"""The records that galleries store and return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
