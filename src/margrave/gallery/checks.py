"""Checks names, embeddings and crops before a gallery uses them; fuses embeddings."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from margrave.gallery.card import GalleryCard
from margrave.gallery.records import PersonRecord

MAX_NAME_BYTES = 512
"""Maximum length of a person's name in UTF-8 bytes."""
BLANK = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols that are displayed as blanks."""


class BadName(ValueError):
    """A person's name is not valid."""


def checked_name(name: str) -> str:
    """Check a person's name, and return it in Unicode's normal form C.

    A name is any Unicode text that is not blank. Names are compared exactly after normalization,
    so that the two encodings of é are equal.

    Raises:
        BadName: the name is blank, longer than 512 bytes, or contains unpaired surrogates or
            control characters.

    >>> checked_name("Ann")
    'Ann'
    """
    if not isinstance(name, str) or not name.strip():
        raise BadName(f"name = {name!r:.30}; give a name that is not blank")
    name = unicodedata.normalize("NFC", name)
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BadName(
            f"name = {name!r:.60} contains an unpaired surrogate; give valid Unicode text"
        ) from None
    if size > MAX_NAME_BYTES:
        raise BadName(f"name has {size} bytes in UTF-8; shorten it to at most {MAX_NAME_BYTES}")
    if controls := [character for character in name if unicodedata.category(character) == "Cc"]:
        raise BadName(
            f"name = {name!r:.60} contains a control character {controls[0]!r}; remove it"
        )
    return name


def check_visible(name: str) -> None:
    """Check that a new person's name shows something.

    Raises:
        BadName: the name consists of spaces and invisible characters.

    >>> check_visible("\u200b\u3164")
    Traceback (most recent call last):
        ...
    margrave.gallery.checks.BadName: name = '\\u200b\u3164' has no visible character; choose another
    """
    # The categories of spaces, and of control, format and unassigned characters, start with Z or C.
    if all(unicodedata.category(character)[0] in "ZC" or character in BLANK for character in name):
        raise BadName(f"name = {name!r:.60} has no visible character; choose another")


def fuse_embeddings(embeddings: np.ndarray, card: GalleryCard) -> np.ndarray:
    """Sum a person's (n, D) embeddings into one (D,) float64 vector, by the card's fusion rule.

    Raises:
        ValueError: the shape is wrong, or an embedding or the sum is zero, infinite or NaN.

    >>> card = GalleryCard(weights="ab12", dimension=2, fusion="mean")
    >>> fuse_embeddings(np.array([[3.0, 0.0], [0.0, 4.0]]), card).tolist()
    [1.0, 1.0]
    """
    vectors = np.asarray(embeddings, np.float64)
    if vectors.ndim != 2 or vectors.shape[1] != card.dimension or not len(vectors):
        raise ValueError(
            f"embeddings have shape {vectors.shape}, must be (n, {card.dimension}) with n at least "
            "1"
        )
    norms = nonzero_norms(vectors, "embeddings")
    total = vectors.sum(0) if card.fusion == "norm-weighted" else (vectors / norms).sum(0)
    nonzero_norms(total[None], "the sum of the embeddings")
    return total


def nonzero_norms(vectors: np.ndarray, name: str) -> np.ndarray:
    """Return the (n, 1) norms of vectors, after checking that all are finite and not zero.

    Args:
        vectors: (n, D) vectors.
        name: what the vectors are, for messages.

    Raises:
        ValueError: a vector is zero, infinite or NaN.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A norm below 1e-30 counts as zero.
    if not (np.isfinite(norms) & (norms > 1e-30)).all():
        raise ValueError(f"{name} must not be zero, infinite or NaN")
    return norms


def checked_record(record: PersonRecord, card: GalleryCard) -> PersonRecord:
    """Check a record before it is stored, and return it with the name normalized.

    The returned record has no crops if the gallery does not keep images.

    Raises:
        ValueError: the name, the vector or the number of images is invalid.
    """
    vector = np.asarray(record.vector, np.float64)
    if vector.shape != (card.dimension,):
        raise ValueError(
            f"the vector of {record.person.name!r} has shape {vector.shape}, must be "
            f"({card.dimension},)"
        )
    nonzero_norms(vector[None], f"the vector of {record.person.name!r}")
    if type(record.person.images) is not int or not 0 < record.person.images < 2**31:
        raise ValueError(
            f"{record.person.name!r} has images = {record.person.images!r:.30}, must be an integer "
            "from 1 to 2147483647"
        )
    person = replace(record.person, name=checked_name(record.person.name))
    crops = tuple(record.crops) if card.keep_images else ()
    return PersonRecord(person=person, vector=vector, crops=crops)


def checked_queries(queries: np.ndarray, card: GalleryCard) -> np.ndarray:
    """Check (Q, D) queries and return them as float32 unit vectors.

    Raises:
        ValueError: the shape is wrong, or a query is zero, infinite or NaN.
    """
    vectors = np.asarray(queries, np.float64)
    if vectors.ndim != 2 or vectors.shape[1] != card.dimension:
        raise ValueError(f"queries have shape {vectors.shape}, must be (Q, {card.dimension})")
    return (vectors / nonzero_norms(vectors, "queries")).astype(np.float32)


def checked_top_k(top_k: int) -> int:
    """Check the number of people to find per query, and return it as an int.

    Raises:
        ValueError: the number is negative or not an integer.
    """
    try:
        checked = operator.index(top_k)
    except TypeError:
        checked = -1
    if checked < 0:
        raise ValueError(f"top_k = {top_k!r:.30}, must be an integer of at least 0")
    return checked


def checked_crops(crops: Sequence[bytes], images: int, card: GalleryCard) -> list[bytes]:
    """Check the crops to keep, one per image or none at all, and return them as a list.

    Args:
        crops: encoded images.
        images: number of images, each with one embedding.
        card: the gallery's card.

    Raises:
        ValueError: the gallery does not keep images, or the number of crops is wrong.
    """
    checked = list(crops)
    if checked and not card.keep_images:
        raise ValueError("this gallery keeps no images; leave the crops out")
    if checked and len(checked) != images:
        raise ValueError(
            f"{len(checked)} crops for {images} embeddings; give one crop per embedding"
        )
    return checked


def add_sums(enrolled: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return the sum of the embeddings of a person's enrolled images and new images.

    Args:
        enrolled: (D,) the sum of the enrolled images' embeddings.
        new: (D,) the sum of the new images' embeddings.

    Raises:
        ValueError: the two sums cancel each other out.
    """
    total = enrolled + new
    # A sum this small consists of rounding errors.
    if not np.linalg.norm(total) > 1e-6 * np.linalg.norm(new):
        raise ValueError(
            "the new images cancel out the enrolled images; check that they show the same person"
        )
    return total
