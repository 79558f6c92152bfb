"""Galleries on a Milvus server (extra ``milvus``), for more people than one machine can search."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace as replace_fields
from typing import Any

import numpy as np

from margrave.gallery.card import GalleryCard
from margrave.gallery.checks import add_sums, checked_name
from margrave.gallery.contract import Gallery, GalleryError, NoGallery, not_enrolled_error, now
from margrave.gallery.milvus_crops import MilvusCrops, batches_of
from margrave.gallery.milvus_rows import (
    ALL_FIELDS,
    METRIC,
    PERSON_FIELDS,
    THRESHOLDS,
    create_people_collection,
    key_of,
    person_of,
    read_card,
    row_of,
    total_of,
)
from margrave.gallery.milvus_server import TIMEOUT, VECTORS, MilvusAddress, MilvusServer
from margrave.gallery.records import (
    Candidate,
    ErasureCheck,
    ForgetResult,
    GalleryStats,
    Person,
    PersonRecord,
)

MAX_RESULTS = 16384
"""Maximum number of results per query that Milvus returns."""
MAX_RESULTS_PER_CALL = 200_000
"""Maximum number of results that `search` requests per call, summed over the call's queries."""
EXTRA_RESULTS = 16
"""Number of results requested beyond top_k, so that equal similarities can be sorted by name."""
DECIMALS = 6
"""Similarities are rounded to this many decimals, because Milvus computes them in float32."""
MAX_BATCH_SIZE = 1000
"""Maximum number of people that `restore` stores per call."""
MAX_BATCH_COMPONENTS = 2**20
"""Maximum number of vector components that `restore` stores per call (4 MB)."""


class MilvusStore:
    """Creates and opens galleries on a Milvus server.

    Args:
        timeout: maximum duration of a call to the server, in seconds.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout

    def create(self, address: str, card: GalleryCard, key: str | None) -> Gallery:
        """Create a new, empty gallery.

        Raises:
            ValueError: the collection exists, the server does not answer, a key is given, or the
                card requests float16.
        """
        parsed = MilvusAddress.parse(address)
        _refuse_key(parsed, key)
        if card.half:
            raise ValueError(
                f"{parsed}: Milvus galleries store float32; use a card with half=False"
            )
        server = MilvusServer(parsed, self.timeout)
        try:
            if server.call("has_collection", parsed.collection):
                raise ValueError(
                    f"{parsed}: this collection exists already; open it, or choose another name"
                )
            if card.keep_images:
                MilvusCrops(server).create()
            create_people_collection(server, card)
            return MilvusGallery(server, card)
        except BaseException:
            server.close()
            raise

    def open(self, address: str, key: str | None) -> Gallery:
        """Open an existing gallery.

        Raises:
            NoGallery: the collection does not exist.
            ValueError: the collection is not a gallery or has another version, the server does not
                answer, or a key is given.
        """
        parsed = MilvusAddress.parse(address)
        _refuse_key(parsed, key)
        server = MilvusServer(parsed, self.timeout)
        try:
            if not server.call("has_collection", parsed.collection):
                raise NoGallery(f"{parsed}: no such gallery; create one with margrave enroll")
            card = read_card(server)
            # A restarted server may not have loaded the collection from disk yet.
            server.prepare(parsed.collection, METRIC)
            if card.keep_images:
                MilvusCrops(server).prepare()
            return MilvusGallery(server, card)
        except BaseException:
            server.close()
            raise


class MilvusGallery(Gallery):
    """People in a collection of a Milvus server; `MilvusStore` creates and opens these galleries.

    A person is one row: a hash of the name, the name, the sum of embeddings (as a unit vector and a
    norm), the number of images, and references to the crops, which are in a second collection.
    Writing a row is atomic. Every read sees all earlier writes (consistency level Strong), and the
    index is exhaustive (FLAT), so searches are exact. Vectors and similarities are float32.

    If two programs add images to the same person at the same time, the images of one of them may be
    lost. All other methods are safe to use concurrently.

    Args:
        server: the connection.
        card: the card of the model whose vectors the gallery holds.
    """

    def __init__(self, server: MilvusServer, card: GalleryCard) -> None:
        self.card, self.place = card, str(server.address)
        self._server, self._collection = server, server.address.collection
        self._crop_collection = MilvusCrops(server)

    def __len__(self) -> int:
        return self._server.count(self._collection)

    def _get(self, name: str) -> Person | None:
        row = self._row(name, PERSON_FIELDS)
        return None if row is None else person_of(row)

    def _add(
        self, name: str, total: np.ndarray, *, images: int, crops: list[bytes], replace: bool
    ) -> Person:
        # Even if `replace` is True, the row is needed: its crops are removed afterwards.
        previous = self._row(name)
        crop_batches, replaced_batches = [], []
        if previous is not None:
            if replace:
                replaced_batches = batches_of(previous)
            else:
                total = add_sums(total_of(previous), total)
                images += previous["images"]
                crop_batches = batches_of(previous)
        if crops:
            crop_batches = [*crop_batches, self._crop_collection.write(crops)]
        person = Person(name=name, images=images, enrolled=now())
        row = row_of(person, total, crop_batches, self.place)
        # This call stores the person and makes the new crops visible, in one atomic step.
        self._server.call("upsert", self._collection, [row])
        self._crop_collection.remove(replaced_batches)
        return person

    def _search(self, queries: np.ndarray, top_k: int) -> list[list[Candidate]]:
        """See `search`; `top_k` must be at most 16 384, the maximum of Milvus."""
        if top_k > MAX_RESULTS:
            raise ValueError(
                f"{self.place}: top_k = {top_k}, must be at most {MAX_RESULTS} on a Milvus server"
            )
        limit = min(top_k + EXTRA_RESULTS, MAX_RESULTS)
        batch_size = max(1, MAX_RESULTS_PER_CALL // limit)
        results: list[list[Candidate]] = []
        for start in range(0, len(queries), batch_size):
            batch = queries[start : start + batch_size]
            for query, hits in zip(batch, self._nearest(batch, limit), strict=True):
                query_limit = limit
                # Equal similarities are sorted by name. So the hits must include everyone who is as
                # similar as the person at rank top_k.
                while (
                    query_limit < MAX_RESULTS
                    and len(hits) == query_limit
                    and _may_cut_ties(hits, top_k)
                ):
                    query_limit = min(4 * query_limit, MAX_RESULTS)
                    hits = self._nearest(query[None], query_limit)[0]
                results.append(hits[:top_k])
        return results

    def _nearest(self, units: np.ndarray, limit: int) -> list[list[Candidate]]:
        """The `limit` people nearest to each of (Q, D) units, sorted by similarity, then name."""
        response = self._server.call(
            "search",
            self._collection,
            data=units.tolist(),
            anns_field=VECTORS,
            limit=limit,
            output_fields=["name"],
            search_params={"metric_type": METRIC},
            consistency_level="Strong",
        )
        return [
            sorted(
                (
                    Candidate(
                        name=hit["entity"]["name"],
                        similarity=round(min(max(float(hit["distance"]), -1.0), 1.0), DECIMALS),
                    )
                    for hit in hits
                ),
                key=lambda candidate: (-candidate.similarity, candidate.name),
            )
            for hits in response
        ]

    def _forget(self, name: str) -> ForgetResult:
        """Remove a person; bytes remain on disk until the server drops its old segments."""
        row = self._require_row(name, (*PERSON_FIELDS, "crops"))
        batches = batches_of(row)
        self._server.call("delete", self._collection, ids=[row["key"]])
        try:
            self._crop_collection.remove(batches)
            compacting = self._server.compact(self._collection)
            if batches:
                compacting &= self._server.compact(self._crop_collection.collection)
        except ValueError as error:
            raise GalleryError(
                f"{name!r} was removed from {self.place} and cannot be found any more, but the "
                f"server did not finish removing the crops and compacting: {error}. Once the "
                "server answers again, finish with margrave gallery verify-erasure"
            ) from error
        return ForgetResult(
            name=row["name"],
            crops=sum(len(sizes) for _, sizes in batches),
            erased=False,
            explanation=(
                "the person cannot be found any more, but bytes are left in the server's old "
                "segments and logs until the server drops them, at a time that it does not report; "
                "compaction " + _compaction_status(compacting)
            ),
        )

    def people(self) -> Iterator[Person]:
        """Iterate over all people, sorted by name."""
        rows = self._server.rows(self._collection, PERSON_FIELDS)
        yield from sorted(map(person_of, rows), key=lambda person: person.name)

    def _vector(self, name: str) -> np.ndarray:
        """Return a person's vector as float64, with the precision of float32."""
        return total_of(self._require_row(name, ("vector", "length")))

    def _crops(self, name: str) -> list[bytes]:
        return self._crop_collection.read(
            batches_of(self._require_row(name, ("crops",))), self.place
        )

    def _restore(self, records: Iterator[PersonRecord]) -> int:
        """Store people, up to 1000 per call to the server."""
        batch_size = max(1, min(MAX_BATCH_SIZE, MAX_BATCH_COMPONENTS // self.card.dimension))
        stored_keys = set[str]()
        while batch := list(itertools.islice(records, batch_size)):
            # A key may occur only once per call, so the last record of a name is kept.
            record_of_key = {key_of(record.person.name): record for record in batch}
            previous_rows = self._rows(list(record_of_key), ("crops",))
            rows = []
            for record in record_of_key.values():
                crop_batches = [self._crop_collection.write(record.crops)] if record.crops else []
                rows.append(row_of(record.person, record.vector, crop_batches, self.place))
            self._server.call("upsert", self._collection, rows)
            for row in previous_rows:
                self._crop_collection.remove(batches_of(row))
            stored_keys.update(record_of_key)
        return len(stored_keys)

    def stats(self) -> GalleryStats:
        """Count people and images; the server does not report bytes."""
        rows = list(self._server.rows(self._collection, ("images", "crops")))
        return GalleryStats(
            people=len(rows),
            images=sum(row["images"] for row in rows),
            crops=sum(len(sizes) for row in rows for _, sizes in batches_of(row)),
            bytes=None,
            store=f"Milvus {self._server.version()} at {self._server.address.server}",
        )

    def verify_erasure(self, traces: Sequence[bytes] = ()) -> ErasureCheck:
        """Remove crops that belong to nobody, and report what cannot be checked.

        Traces that are valid names are looked up among the enrolled people; other traces are
        ignored.
        """
        findings = []
        if self.card.keep_images:
            referenced = {
                batch_key
                for row in self._server.rows(self._collection, ("crops",))
                for batch_key, _ in batches_of(row)
            }
            removed_count = self._crop_collection.remove_orphans(referenced)
            findings.append(
                f"{removed_count} sets of crops without a person were removed"
                if removed_count
                else "every crop that is older than an hour belongs to an enrolled person"
            )
        for trace in traces:
            name = _as_name(trace)
            if name is not None:
                enrolled = self._row(name, PERSON_FIELDS) is not None
                findings.append(f"{name!r} is {'still' if enrolled else 'not'} enrolled")
        compacting = self._server.compact(self._collection)
        findings.append(
            f"only searchable data was checked; compaction {_compaction_status(compacting)}; the "
            "server's segments, logs and backups cannot be searched over the network, and deleted "
            "bytes may be left in them. Search the server's storage itself, or drop the gallery's "
            "collection together with its storage"
        )
        return ErasureCheck(complete=False, findings=tuple(findings))

    def set_thresholds(self, thresholds: Sequence[Mapping[str, Any]]) -> None:
        """Replace the operating points in the card."""
        text = json.dumps([dict(point) for point in thresholds])
        self._server.call("alter_collection_properties", self._collection, {THRESHOLDS: text})
        self.card = replace_fields(self.card, thresholds=tuple(json.loads(text)))

    def close(self) -> None:
        """Close the connection; the server keeps running."""
        self._server.close()

    def _row(self, name: str, fields: Sequence[str] = ALL_FIELDS) -> dict[str, Any] | None:
        rows = self._rows([key_of(name)], fields)
        return rows[0] if rows else None

    def _rows(self, keys: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        rows = self._server.call(
            "query",
            self._collection,
            ids=[*keys],
            output_fields=[*fields],
            consistency_level="Strong",
        )
        return [dict(row) for row in rows]

    def _require_row(self, name: str, fields: Sequence[str]) -> dict[str, Any]:
        row = self._row(name, fields)
        if row is None:
            raise not_enrolled_error(name, self)
        return row


def _refuse_key(address: MilvusAddress, key: str | None) -> None:
    if key is not None:
        raise ValueError(
            f"{address}: a Milvus server compares the vectors itself, so they cannot be encrypted; "
            "leave out the key and encrypt the server's disk, or use a gallery in a file"
        )


def _compaction_status(started: bool) -> str:
    return "has started" if started else "is postponed by the server's rate limit"


def _may_cut_ties(hits: Sequence[Candidate], top_k: int) -> bool:
    """Whether people who are not among the hits may be as similar as the person at rank top_k."""
    return len(hits) > top_k and hits[-1].similarity == hits[top_k - 1].similarity


def _as_name(trace: bytes) -> str | None:
    """The trace decoded as a person's name, or None if it is not a valid name."""
    try:
        return checked_name(trace.decode())
    except ValueError:
        return None
