"""The content of a Milvus collection of people: the gallery's card, and one row per person."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from margrave.gallery.card import GalleryCard
from margrave.gallery.milvus_crops import Batch, batches_as_text, parse_list
from margrave.gallery.milvus_server import VECTORS, MilvusServer
from margrave.gallery.records import Person

MARK = "margrave.gallery"
"""First word of the description of a gallery's collection; the card as JSON follows."""
THRESHOLDS = "margrave.thresholds"
"""Name of the collection's property with the operating points that ``set_thresholds`` stored; they
replace those in the card."""
METRIC = "IP"
"""Inner product, which is the cosine for unit vectors."""
PERSON_FIELDS = ("name", "images", "enrolled")
"""The fields of a row that `person_of` reads."""
ALL_FIELDS = (*PERSON_FIELDS, VECTORS, "length", "crops")
"""All fields of a row except the key. ``length`` is the norm of the sum of embeddings."""


def create_people_collection(server: MilvusServer, card: GalleryCard) -> None:
    """Create the collection of people, with the card in the collection's description.

    Args:
        server: the connection.
        card: the gallery's card.

    Raises:
        ValueError: the server does not answer, or refuses a call.
    """
    types, field = server.pymilvus.DataType, server.pymilvus.FieldSchema
    fields = [
        field("key", types.VARCHAR, is_primary=True, max_length=64),
        # A name has at most 512 bytes. The limit here is larger, because some versions of Milvus
        # count bytes and others count characters.
        field("name", types.VARCHAR, max_length=2048),
        field(VECTORS, types.FLOAT_VECTOR, dim=card.dimension),
        field("length", types.DOUBLE),
        field("images", types.INT64),
        field("enrolled", types.VARCHAR, max_length=64),
        field("crops", types.VARCHAR, max_length=65535),
    ]
    server.create(fields, METRIC, f"{MARK} {card.to_json()}", server.address.collection)


def read_card(server: MilvusServer) -> GalleryCard:
    """Read the gallery's card, with the thresholds that ``set_thresholds`` stored last.

    Raises:
        ValueError: the collection is not a gallery, is damaged, or has another version.
    """
    place = str(server.address)
    described = server.call("describe_collection", server.address.collection)
    mark, _, text = str(described.get("description", "")).partition(" ")
    if mark != MARK:
        raise ValueError(f"{place}: this collection is not a Margrave gallery; choose another name")
    card = GalleryCard.from_json(text, place)
    thresholds = dict(described.get("properties") or {}).get(THRESHOLDS)
    if thresholds is not None:
        points = parse_list(thresholds, f"{place}: the list of thresholds")
        card = replace(card, thresholds=tuple(points))
    dimension = next(
        (
            field.get("params", {}).get("dim")
            for field in described.get("fields", ())
            if field.get("name") == VECTORS
        ),
        None,
    )
    if dimension is None or int(dimension) != card.dimension:
        raise ValueError(
            f"{place} is damaged: its vectors have dimension {dimension}, but its card says "
            f"{card.dimension}; restore it from an export (margrave gallery export)"
        )
    return card


def key_of(name: str) -> str:
    """The primary key of a person: the SHA-256 of the name in hexadecimal digits.

    >>> key_of("Ann")[:8]
    '17239b6e'
    """
    return hashlib.sha256(name.encode()).hexdigest()


def row_of(
    person: Person, total: np.ndarray, batches: Sequence[Batch], place: str
) -> dict[str, Any]:
    """A person's row, as Milvus stores it.

    Args:
        person: the person.
        total: (D,) the sum of the images' embeddings.
        batches: the batches of the person's kept crops.
        place: the gallery's name in messages.

    Raises:
        ValueError: there are too many crops.
    """
    length = float(np.linalg.norm(total))
    return {
        "key": key_of(person.name),
        "name": person.name,
        VECTORS: (total / length).astype(np.float32).tolist(),
        "length": length,
        "images": person.images,
        "enrolled": person.enrolled,
        "crops": batches_as_text(batches, place),
    }


def person_of(row: Mapping[str, Any]) -> Person:
    """The person of a row."""
    return Person(name=row["name"], images=int(row["images"]), enrolled=row["enrolled"])


def total_of(row: Mapping[str, Any]) -> np.ndarray:
    """(D,) the sum of a person's embeddings, as float64 with the precision of float32."""
    return np.asarray(row[VECTORS], np.float64) * float(row["length"])
