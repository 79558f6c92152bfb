"""Galleries: enroll, search and forget people, each represented by one face vector."""

from margrave.gallery.card import GalleryCard
from margrave.gallery.checks import BadName, checked_name, fuse_embeddings
from margrave.gallery.contract import Gallery, GalleryError, NoGallery, Unavailable
from margrave.gallery.encryption import new_key
from margrave.gallery.exchange import export_gallery, read_exported_card, read_exported_people
from margrave.gallery.memory import MemoryGallery
from margrave.gallery.opening import GALLERIES, create_gallery, open_gallery
from margrave.gallery.records import (
    Candidate,
    ErasureCheck,
    ForgetResult,
    GalleryStats,
    Person,
    PersonRecord,
)

__all__ = [
    "GALLERIES",
    "BadName",
    "Candidate",
    "ErasureCheck",
    "ForgetResult",
    "Gallery",
    "GalleryCard",
    "GalleryError",
    "GalleryStats",
    "MemoryGallery",
    "NoGallery",
    "Person",
    "PersonRecord",
    "Unavailable",
    "checked_name",
    "create_gallery",
    "export_gallery",
    "fuse_embeddings",
    "new_key",
    "open_gallery",
    "read_exported_card",
    "read_exported_people",
]
