"""Creates and opens galleries by address: a path for a local file, or a server's address."""

from __future__ import annotations

import importlib
import re
from typing import Protocol

from margrave.gallery.card import GalleryCard
from margrave.gallery.contract import Gallery
from margrave.registry import suggest

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{1,30})://")


class Store(Protocol):
    """Creates and opens one kind of gallery."""

    def create(self, address: str, card: GalleryCard, key: str | None) -> Gallery:
        """Create a new, empty gallery; raise ValueError if there is one already."""
        ...

    def open(self, address: str, key: str | None) -> Gallery:
        """Open an existing gallery."""
        ...


GALLERIES = {
    "file": "margrave.gallery.embedded:EmbeddedStore",
    "milvus": "margrave.gallery.milvus:MilvusStore",
    "memory": "margrave.gallery.memory:MemoryStore",
}
"""Address scheme -> import path of a `Store`. A plain path has the scheme ``file``. Add an item to
support another kind of store."""


def create_gallery(address: str, card: GalleryCard, *, key: str | None = None) -> Gallery:
    """Create a new, empty gallery.

    Args:
        address: a path, ``milvus://host:port/name``, or ``memory://``.
        card: the card of the model whose vectors the gallery will hold.
        key: encrypts a local file's names, vectors and crops; None stores them unencrypted. A
            Milvus server refuses a key; a gallery in memory ignores it.

    Raises:
        ValueError: there is a gallery already, the scheme is unknown, the server does not answer,
            or the store refuses a key.

    >>> card = GalleryCard(weights="ab12", dimension=2)
    >>> len(create_gallery("memory://", card))
    0
    """
    return _store(address).create(address, card, key)


def open_gallery(
    address: str, *, card: GalleryCard | None = None, key: str | None = None
) -> Gallery:
    """Open a gallery.

    Args:
        address: see `create_gallery`.
        card: the card of the model that will be used with the gallery; it must match the gallery's
            card. None skips the check.
        key: the key of an encrypted gallery.

    Raises:
        ValueError: there is no gallery, it is damaged, has another version or belongs to another
            model, or the key is wrong.

    >>> open_gallery("none.gallery")
    Traceback (most recent call last):
        ...
    margrave.gallery.contract.NoGallery: none.gallery: no such gallery; create one with margrave \
enroll
    """
    gallery = _store(address).open(address, key)
    if card is not None:
        try:
            gallery.card.check_same_model(card, gallery.place)
        except ValueError:
            gallery.close()
            raise
    return gallery


def _store(address: str) -> Store:
    match = _SCHEME.match(address)
    scheme = match[1] if match else "file"
    if scheme not in GALLERIES:
        raise ValueError(
            f"{address}: unknown kind of gallery {scheme!r}; {suggest(scheme, GALLERIES)}"
        )
    module, _, class_name = GALLERIES[scheme].partition(":")
    return getattr(importlib.import_module(module), class_name)()
