"""Crops on a Milvus server: batches of encoded images, stored as rows of base64 text."""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from margrave.files import read_json
from margrave.gallery.contract import GalleryError
from margrave.gallery.milvus_server import VECTORS, MilvusServer

MARK = "margrave.crops"
"""Description of a Milvus collection of crops, by which it is recognized."""
SUFFIX = "_crops"
"""The name of the collection of crops is the gallery's collection name with this suffix."""
CHUNK_BYTES = 48_000
"""Maximum number of bytes of crops per row. Milvus accepts 65 535 characters per row, and base64
needs 4 characters for 3 bytes."""
ROWS_PER_CALL = 64
"""Maximum number of rows that one call reads or writes (4 MB)."""
KEYS_PER_DELETION = 1000
"""Maximum number of rows that one call deletes."""
MAX_CROPS_BYTES = 256 * 2**20
"""Maximum total size, in bytes, of the crops that one `MilvusCrops.write` stores."""
MAX_LIST_LENGTH = 65_000
"""Maximum length of the text that lists a person's crops, in characters."""
ORPHAN_SECONDS = 3600
"""Minimum age, in seconds, at which crops without a person are removed. Younger ones are kept,
because another program may be about to write the person's row."""

Batch = tuple[str, list[int]]
"""The crops that one `MilvusCrops.write` stored: (the batch's key, the crops' sizes in bytes)."""
BATCH_KEY_LENGTH, UUID_LENGTH = 44, 32
"""Lengths in hexadecimal digits. A batch's key is a UUID followed by the time of writing (seconds
since 1970, 12 digits). A row's key is the batch's key followed by the row's number in the batch
(8 digits)."""


class MilvusCrops:
    """The crops of a gallery, in a second collection beside the gallery's own.

    Crops are written before the person's row that refers to them, and removed after that row is
    removed or replaced. An interruption in between leaves crops without a person, which
    `remove_orphans` removes.

    Args:
        server: the connection.
    """

    def __init__(self, server: MilvusServer) -> None:
        self._server = server
        self.collection = server.address.collection + SUFFIX

    def create(self) -> None:
        """Create the collection, or use the one that an interrupted call left.

        Raises:
            ValueError: a collection of this name exists, but does not hold a gallery's crops.
        """
        if self._server.call("has_collection", self.collection):
            described = self._server.call("describe_collection", self.collection)
            if described.get("description") != MARK:
                raise ValueError(
                    f"{self._server.address}: the collection for the gallery's crops, "
                    f"{self.collection!r}, exists already and holds something else; choose "
                    "another name for the gallery"
                )
        types, field = self._server.pymilvus.DataType, self._server.pymilvus.FieldSchema
        fields = [
            field("key", types.VARCHAR, is_primary=True, max_length=64),
            # Milvus requires a vector field; this one is not used.
            field(VECTORS, types.FLOAT_VECTOR, dim=2),
            field("content", types.VARCHAR, max_length=65535),
        ]
        self._server.create(fields, "L2", MARK, self.collection)

    def prepare(self) -> None:
        """Load the collection after a restart of the server."""
        self._server.prepare(self.collection, "L2")

    def write(self, crops: Sequence[bytes]) -> Batch:
        """Store crops as a new batch, to which no person refers yet.

        Returns:
            The batch, to be listed in the person's row.

        Raises:
            ValueError: the crops are too large, or the server does not answer.
        """
        content = b"".join(crops)
        if len(content) > MAX_CROPS_BYTES:
            raise GalleryError(
                f"{self._server.address}: the crops of one call have {len(content)} bytes; the "
                f"maximum is {MAX_CROPS_BYTES}; enroll fewer images at a time"
            )
        # `remove_orphans` reads a batch's age from the time in its key.
        batch_key = f"{uuid.uuid4().hex}{int(time.time()):012x}"
        rows = [
            {
                "key": f"{batch_key}{number:08x}",
                VECTORS: [0.0, 0.0],
                "content": base64.b64encode(content[start : start + CHUNK_BYTES]).decode(),
            }
            for number, start in enumerate(range(0, max(len(content), 1), CHUNK_BYTES))
        ]
        for start in range(0, len(rows), ROWS_PER_CALL):
            self._server.call("upsert", self.collection, rows[start : start + ROWS_PER_CALL])
        return batch_key, [len(crop) for crop in crops]

    def read(self, batches: Sequence[Batch], place: str) -> list[bytes]:
        """Read the crops of batches, in order.

        Raises:
            ValueError: crops are missing or damaged; the message names the gallery.
        """
        crops = []
        for batch_key, sizes in batches:
            content = b"".join(self._chunks(batch_key, sum(sizes), place))
            if len(content) != sum(sizes):
                raise GalleryError(f"{place}: stored crops are damaged; enroll the person again")
            start = 0
            for size in sizes:
                crops.append(content[start : start + size])
                start += size
        return crops

    def _chunks(self, batch_key: str, size: int, place: str) -> list[bytes]:
        """The decoded content of a batch's rows, in order.

        Args:
            batch_key: the batch's key.
            size: total size of the batch's crops, in bytes.
            place: the gallery's name in messages.
        """
        keys = _keys(batch_key, size)
        text_of_row: dict[str, str] = {}
        for start in range(0, len(keys), ROWS_PER_CALL):
            rows = self._server.call(
                "query",
                self.collection,
                ids=keys[start : start + ROWS_PER_CALL],
                output_fields=["content"],
                consistency_level="Strong",
            )
            text_of_row.update((row["key"], row["content"]) for row in rows)
        try:
            return [base64.b64decode(text_of_row[key], validate=True) for key in keys]
        except (KeyError, binascii.Error):
            raise GalleryError(
                f"{place}: stored crops are missing or damaged; enroll the person again"
            ) from None

    def remove(self, batches: Sequence[Batch]) -> None:
        """Delete batches that no person refers to any more."""
        for batch_key, sizes in batches:
            keys = _keys(batch_key, sum(sizes))
            self._delete(keys)

    def remove_orphans(self, referenced: Collection[str]) -> int:
        """Delete batches that are older than an hour and belong to nobody; return their number.

        Args:
            referenced: the keys of the batches that belong to people.
        """
        row_keys = [row["key"] for row in self._server.rows(self.collection, ("key",))]
        cutoff = time.time() - ORPHAN_SECONDS
        orphan_keys = [
            key
            for key in row_keys
            if key[:BATCH_KEY_LENGTH] not in referenced
            and int(key[UUID_LENGTH:BATCH_KEY_LENGTH], 16) < cutoff
        ]
        self._delete(orphan_keys)
        self._server.compact(self.collection)
        return len({key[:BATCH_KEY_LENGTH] for key in orphan_keys})

    def _delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), KEYS_PER_DELETION):
            self._server.call(
                "delete", self.collection, ids=keys[start : start + KEYS_PER_DELETION]
            )


def batches_of(row: Mapping[str, Any]) -> list[Batch]:
    """The batches of crops that a person's row lists."""
    batches = parse_list(row["crops"], "a person's list of crops")
    return [(str(batch_key), [int(size) for size in sizes]) for batch_key, sizes in batches]


def batches_as_text(batches: Sequence[Batch], place: str) -> str:
    """The batches of a person's crops as JSON text, which the person's row stores.

    Raises:
        ValueError: there are too many crops.
    """
    text = json.dumps(batches, separators=(",", ":"))
    if len(text) > MAX_LIST_LENGTH:
        raise GalleryError(
            f"{place}: {sum(len(sizes) for _, sizes in batches)} crops of one person are too many "
            "for a Milvus gallery; enroll the person again with fewer images and --replace "
            "(replace=True in Python)"
        )
    return text


def parse_list(text: Any, name: str) -> list[Any]:
    """Parse a JSON list.

    Args:
        text: the text to parse.
        name: the list's name in messages.

    Raises:
        ValueError: the text is not a JSON list.
    """
    parsed = read_json(str(text), name)
    if not isinstance(parsed, list):
        raise ValueError(f"{name} is damaged (not a list)")
    return parsed


def _keys(batch_key: str, size: int) -> list[str]:
    """The keys of a batch's rows; `size` is the total size of the batch's crops in bytes."""
    return [f"{batch_key}{number:08x}" for number in range(max(1, -(-size // CHUNK_BYTES)))]
