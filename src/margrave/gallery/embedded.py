"""A gallery in two files: people in SQLite, and vectors in a file that is mapped for search."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from margrave.gallery.card import GalleryCard
from margrave.gallery.checks import add_sums
from margrave.gallery.contract import Gallery, GalleryError, NoGallery, not_enrolled_error, now
from margrave.gallery.database import Database, Row
from margrave.gallery.encryption import NONCE_BYTES, SALT_BYTES, TAG_BYTES, Cipher
from margrave.gallery.erasure import dirty_free_pages, first_file_with, traces_of
from margrave.gallery.records import (
    Candidate,
    ErasureCheck,
    ForgetResult,
    GalleryStats,
    Person,
    PersonRecord,
)
from margrave.gallery.vector_file import VectorFile
from margrave.search import DISTRACTOR, Comparison, Nearest, sweep

T = TypeVar("T")

BATCH_SIZE = 1000
"""Number of people that `restore` stores per transaction."""
DECIMALS = 6
"""Similarities are rounded to this many decimals, because they are computed in float32."""
EXTRA_RESULTS = 8
"""Number of results requested beyond top_k, so that equal similarities can be sorted by name."""
MAX_TRIES = 8
"""Maximum number of attempts to read without a lock. If another process changes the gallery
during every attempt, the read is repeated while writers are locked out."""


class EmbeddedGallery(Gallery):
    """People in a SQLite file, and their vectors in a memory-mapped file beside it.

    The database decides which vectors are valid: a vector to which no database row refers is
    ignored and overwritten with zeros. A vector is first written into a free slot and then
    referenced by a row; it is never overwritten in place. So an interrupted call takes either full
    effect or none. Several processes and threads may use the same gallery. `EmbeddedStore` creates
    and opens these galleries.

    Args:
        path: the SQLite file.
        key: the key of an encrypted gallery; vectors are decrypted into memory for searching.

    Raises:
        ValueError: a file is damaged or has a newer version, or the key is wrong or missing.
    """

    def __init__(self, path: str | Path, key: str | None = None) -> None:
        self.path, self.place = Path(path), str(path)
        self._lock = threading.RLock()
        self._database = Database(self.path)
        try:
            self._identity = self._database.read_meta("identity")
            self._cipher = open_cipher(self.place, key, self._database.read_meta("salt"))
            card = self._decrypt(self._database.read_meta("card"), b"card")
            self.card = GalleryCard.from_json(card.decode(errors="replace"), self.place)
            self._vector_file = VectorFile(
                vectors_path(self.path), self._identity, slot_bytes(self.card, self._cipher)
            )
        except BaseException:
            self._database.close()
            raise
        self._dtype = np.dtype(np.float16 if self.card.half else np.float32)
        # What `search` has read so far: the database's generation (see
        # `Database.current_generation`), a mask of the slots that were empty then, and the vectors
        # of all slots.
        self._generation = -1
        self._empty_slots = np.empty(0, bool)
        self._slot_vectors = np.empty((0, self.card.dimension), self._dtype)
        try:
            with self._locked():
                self._zero_unused_slots(empty_log=False)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        with self._locked():
            return self._database.count()

    def _get(self, name: str) -> Person | None:
        with self._locked():
            row = self._database.row_by_key(self._lookup_key(name))
            return None if row is None else self._person(row)

    def _add(
        self, name: str, total: np.ndarray, *, images: int, crops: list[bytes], replace: bool
    ) -> Person:
        with self._locked():
            with self._database.write_transaction():
                previous = self._database.row_by_key(self._lookup_key(name))
                person_id = self._database.next_id() if previous is None else previous.id
                if previous is not None and not replace:
                    total = add_sums(self._total(previous), total)
                    images += self._person(previous).images
                    self._database.release_slot(previous.slot)
                elif previous is not None:
                    self._database.delete(previous)
                person = Person(name=name, images=images, enrolled=now())
                self._put(person_id, person, total, crops)
            if previous is not None:
                self._zero_unused_slots()
        return person

    def _search(self, queries: np.ndarray, top_k: int) -> list[list[Candidate]]:
        with self._locked():
            return self._read_consistently(lambda: self._search_once(queries, top_k))

    def _forget(self, name: str) -> ForgetResult:
        """Remove a person, and search the files to verify that every byte is gone."""
        with self._locked():
            # Read the row within the transaction. Otherwise another process could remove the person
            # meanwhile, and the row's id and slot could already belong to another person.
            with self._database.write_transaction():
                row = self._require_row(name)
                crops = self._database.crops(row.id)
                # `_put` writes each name between a tab and a line break.
                traces = [row.record, self._lookup_key(name), b"\t" + name.encode() + b"\n"]
                traces += traces_of(self._vector_file.read(row.slot))
                traces += [trace for crop in crops for trace in traces_of(crop)]
                self._database.delete(row)
            self._zero_unused_slots()
            file_with_traces = first_file_with(self._files(), traces)
            if file_with_traces is not None:
                # Pages that SQLite has rearranged may keep old bytes; rewriting the file removes
                # them.
                self._database.rewrite()
                self._database.empty_log()
                file_with_traces = first_file_with(self._files(), traces)
        erased = file_with_traces is None
        explanation = (
            f"vector, name and {len(crops)} crops were overwritten; a search of {self.path.name} "
            "and the files beside it found none of their bytes"
            if erased
            else f"bytes are left in {file_with_traces}: another person may be enrolled with the "
            "same image, or another program may be using the gallery; check again later: margrave "
            "gallery verify-erasure"
        )
        return ForgetResult(name=name, crops=len(crops), erased=erased, explanation=explanation)

    def people(self) -> Iterator[Person]:
        """Iterate over all people, sorted by name."""
        with self._locked():
            rows = self._database.rows()
        people = [self._person(row) for row in rows]
        yield from sorted(people, key=lambda person: person.name)

    def _vector(self, name: str) -> np.ndarray:
        with self._locked():
            return self._read_consistently(lambda: self._total(self._require_row(name)))

    def _crops(self, name: str) -> list[bytes]:
        """Read a person's kept crops, and verify their checksums."""
        with self._locked():
            stored = self._read_consistently(
                lambda: self._database.crops(self._require_row(name).id)
            )
            contents = [self._decrypt(content, b"crop") for content in stored]
        # The first 4 bytes are the checksum, see `with_checksum`.
        if any(with_checksum(content[4:]) != content for content in contents):
            raise self._database.damage_error(f"a crop of {name!r} has changed")
        return [content[4:] for content in contents]

    def _restore(self, records: Iterator[PersonRecord]) -> int:
        """Store people, a thousand per transaction."""
        names = set[str]()
        while batch := list(itertools.islice(records, BATCH_SIZE)):
            with self._locked():
                replaced = False
                with self._database.write_transaction():
                    for record in batch:
                        key = self._lookup_key(record.person.name)
                        previous = self._database.row_by_key(key)
                        if previous is not None:
                            self._database.delete(previous)
                            replaced = True
                        person_id = self._database.next_id()
                        self._put(person_id, record.person, record.vector, record.crops, sync=False)
                    self._vector_file.sync()
                if replaced:
                    self._zero_unused_slots()
            names.update(record.person.name for record in batch)
        return len(names)

    def stats(self) -> GalleryStats:
        """Count people, images and bytes."""
        with self._locked():
            people = list(self.people())
            return GalleryStats(
                people=len(people),
                images=sum(person.images for person in people),
                crops=self._database.count_crops(),
                # st_blocks counts blocks of 512 bytes; holes in sparse files take up no blocks.
                bytes=sum(path.stat().st_blocks * 512 for path in self._files()),
                store="file",
                encrypted=self._cipher is not None,
            )

    def verify_erasure(self, traces: Sequence[bytes] = ()) -> ErasureCheck:
        """Search the files for remains of forgotten people, and for damage."""
        with self._locked():
            self._database.empty_log()
            rows = self._database.rows()
            used = {row.slot for row in rows}
            unused = [slot for slot in range(self._vector_file.slot_count) if slot not in used]
            dirty_slot_count = sum(any(self._vector_file.read(slot)) for slot in unused)
            log = self.path.with_name(self.path.name + "-wal")
            log_in_use = log.exists() and log.stat().st_size > 0
            dirty_page_count = dirty_free_pages(self.path)
            damaged_count = sum(self._checksum(row.slot) != row.checksum for row in rows)
            file_with_traces = first_file_with(self._files(), [trace for trace in traces if trace])
            findings = [
                f"unused vector slots: {len(unused)}, not overwritten with zeros: "
                f"{dirty_slot_count}",
                f"the write-ahead log is {'in use by another process' if log_in_use else 'empty'}",
                f"free database pages that are not overwritten with zeros: {dirty_page_count}",
                f"the database is {'intact' if self._database.is_intact() else 'damaged'}",
                f"vectors with a wrong checksum: {damaged_count}",
            ]
        if traces:
            findings.append(
                "no file contains any of the given byte strings"
                if file_with_traces is None
                else f"{file_with_traces} contains at least one of the given byte strings"
            )
        complete = not (dirty_slot_count or log_in_use or dirty_page_count or file_with_traces)
        return ErasureCheck(complete=complete, findings=tuple(findings))

    def set_thresholds(self, thresholds: Sequence[Mapping[str, Any]]) -> None:
        """Replace the operating points in the card."""
        card = replace(self.card, thresholds=tuple(thresholds))
        with self._locked(), self._database.write_transaction():
            self._database.set_meta("card", self._encrypt(card.to_json().encode(), b"card"))
        self.card = card

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._slot_vectors = np.empty((0, self.card.dimension), self._dtype)
            self._vector_file.close()
            self._database.close()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the gallery against other threads; raise SQLite's errors as errors with a remedy."""
        with self._lock, self._database.explain_errors():
            yield

    def _read_consistently(self, read: Callable[[], T]) -> T:
        """Return the result of a read during which no other process changed the gallery."""
        for _ in range(MAX_TRIES):
            generation = self._database.current_generation()
            try:
                result = read()
            except ValueError:
                # A row is read before its vector, so a change in between looks like damage.
                if self._database.current_generation() == generation:
                    raise
                continue
            if self._database.current_generation() == generation:
                return result
        with self._database.write_transaction():
            return read()

    def _require_row(self, name: str) -> Row:
        row = self._database.row_by_key(self._lookup_key(name))
        if row is None:
            raise not_enrolled_error(name, self)
        return row

    def _lookup_key(self, name: str) -> bytes:
        """The keyed hash by which the database looks up a name.

        The hash key is secret if the gallery is encrypted; otherwise, the gallery's identity is
        the hash key.
        """
        if self._cipher is not None:
            return self._cipher.pseudonym(name.encode())
        return hashlib.blake2b(name.encode(), key=self._identity, digest_size=32).digest()

    def _person(self, row: Row) -> Person:
        return self._parse_record(row)[0]

    def _parse_record(self, row: Row) -> tuple[Person, float]:
        """Parse a row's record into (the person, the norm of the summed embeddings)."""
        text = self._decrypt(row.record, b"person %d" % row.id)
        try:
            images, norm, enrolled, name = text.decode().split("\t", 3)
            person = Person(name=name.removesuffix("\n"), images=int(images), enrolled=enrolled)
            return person, float(norm)
        except (ValueError, AttributeError):
            raise self._database.damage_error(f"person {row.id} cannot be read") from None

    def _total(self, row: Row) -> np.ndarray:
        """(D,) float64: the sum of a person's embeddings, after verifying the vector's checksum."""
        person, norm = self._parse_record(row)
        if self._checksum(row.slot) != row.checksum:
            raise self._database.damage_error(f"the vector of {person.name!r} has changed")
        return self._unit_vector(row.slot).astype(np.float64) * norm

    def _checksum(self, slot: int) -> int:
        return zlib.crc32(self._vector_file.read(slot))

    def _unit_vector(self, slot: int) -> np.ndarray:
        """(D,) the unit vector in a slot, decrypted."""
        content = self._vector_file.read(slot)
        if self._cipher is not None:
            content = self._decrypt(content, b"vector %d" % slot)
        return np.frombuffer(content, self._dtype)

    def _put(
        self,
        person_id: int,
        person: Person,
        total: np.ndarray,
        crops: Sequence[bytes],
        sync: bool = True,
    ) -> None:
        """Write a person's vector into a free slot, then the row that refers to it.

        Call it within a transaction. The vector must be on disk before the transaction ends: with
        ``sync=False``, the caller must sync the vector file.

        Args:
            person_id: a new id, or the id of the row to replace.
            person: name, number of images and time of enrollment.
            total: (D,) the sum of the images' embeddings.
            crops: crops to add.
            sync: wait until the vector is on disk.
        """
        norm = float(np.linalg.norm(total))
        slot = self._database.acquire_slot()
        self._check_slot_count(slot)
        content = (total / norm).astype(self._dtype).tobytes()
        if self._cipher is not None:
            content = self._encrypt(content, b"vector %d" % slot)
        self._vector_file.write(slot, content)
        if sync:
            self._vector_file.sync()
        # Names contain no tabs or line breaks. So `forget` can search the files for a name between
        # a tab and a line break, which does not match longer names.
        text = f"{person.images}\t{norm!r}\t{person.enrolled}\t{person.name}\n"
        record = self._encrypt(text.encode(), b"person %d" % person_id)
        self._database.put(
            Row(person_id, slot, record, zlib.crc32(content)),
            self._lookup_key(person.name),
            [self._encrypt(with_checksum(crop), b"crop") for crop in crops],
        )

    def _check_slot_count(self, count: int) -> None:
        """Check that the vector file has all slots that the database uses.

        A damaged slot number then neither allocates memory nor enlarges the file.
        """
        if count > self._vector_file.slot_count:
            raise self._database.damage_error(
                f"it uses {count} vector slots, but {vectors_path(self.path).name} has "
                f"{self._vector_file.slot_count}"
            )

    def _zero_unused_slots(self, empty_log: bool = True) -> None:
        """Overwrite with zeros all slots to which no row refers, as after an interrupted call.

        Args:
            empty_log: also truncate the write-ahead log, which may contain deleted rows.
        """
        with self._database.write_transaction():
            count = self._database.count_slots()
            # An interrupted call may have written at most one batch of slots that the database does
            # not know.
            unknown = range(count, min(count + BATCH_SIZE, self._vector_file.slot_count))
            free = self._database.freed_since(-1)
            unused = [*free, *unknown]
            dirty_slots = [slot for slot in unused if any(self._vector_file.read(slot))]
            for slot in dirty_slots:
                self._vector_file.zero(slot)
            if dirty_slots:
                self._vector_file.sync()
        if empty_log:
            self._database.empty_log()

    def _search_once(self, queries: np.ndarray, top_k: int) -> list[list[Candidate]]:
        """Search; valid only if no other process changed the gallery during the search."""
        generation = self._database.current_generation()
        if generation != self._generation:
            self._read_changes(generation)
        slot_count = len(self._empty_slots)
        people_count = slot_count - int(np.count_nonzero(self._empty_slots))
        if not people_count:
            return [[] for _ in queries]
        comparison = Comparison(
            queries,
            np.full(len(queries), DISTRACTOR),  # a search without labels
            self._slot_vectors[:slot_count],
            second_is_unit=True,
            absent=self._empty_slots if people_count < slot_count else None,
        )
        limit = min(top_k + EXTRA_RESULTS, people_count)
        while True:
            nearest = Nearest(len(queries), limit)
            sweep(comparison, {"nearest": nearest})
            rounded = nearest.scores.round(DECIMALS)
            # Equal similarities are sorted by name. So the results must include everyone who is as
            # similar as the person at rank top_k. If the last result is as similar, too, there may
            # be more.
            may_cut_ties = limit < people_count and bool(
                (rounded[:, top_k - 1] == rounded[:, -1]).any()
            )
            if not may_cut_ties:
                break
            limit = min(4 * limit, people_count)
        answers = []
        for slots, similarities in zip(nearest.columns.tolist(), rounded.tolist(), strict=True):
            cutoff = similarities[min(top_k, limit) - 1]
            candidates = [
                self._candidate(slot, similarity)
                for slot, similarity in zip(slots, similarities, strict=True)
                if similarity >= cutoff
            ]
            candidates.sort(key=lambda candidate: (-candidate.similarity, candidate.name))
            answers.append(candidates[:top_k])
        return answers

    def _candidate(self, slot: int, similarity: float) -> Candidate:
        row = self._database.row_by_slot(slot)
        if row is None:
            raise self._database.damage_error(f"no person has the vector in slot {slot}")
        person = self._person(row)
        if self._checksum(slot) != row.checksum:
            raise self._database.damage_error(f"the vector of {person.name!r} has changed")
        return Candidate(name=person.name, similarity=min(max(similarity, -1.0), 1.0))

    def _read_changes(self, generation: int) -> None:
        """Update `_empty_slots` and `_slot_vectors` with the changes since `_generation`."""
        freed = self._database.freed_since(self._generation)
        occupied = self._database.occupied_since(self._generation)
        count = max(len(self._empty_slots), self._database.count_slots())
        self._check_slot_count(max([count - 1, *freed, *occupied]) + 1)
        empty = np.ones(count, bool)
        empty[: len(self._empty_slots)] = self._empty_slots
        empty[freed] = True
        empty[occupied] = False
        if self._cipher is not None:
            vectors = np.zeros((count, self.card.dimension), self._dtype)
            vectors[: len(self._slot_vectors)] = self._slot_vectors
            vectors[freed] = 0
            for slot in occupied:
                vectors[slot] = self._unit_vector(slot)
            self._slot_vectors = vectors
        # The mapping shows changes of the file; map again only if there are more slots.
        elif len(self._slot_vectors) < count:
            self._slot_vectors = self._vector_file.map_vectors(self._dtype, self.card.dimension)
        self._empty_slots, self._generation = empty, generation

    def _encrypt(self, content: bytes, context: bytes) -> bytes:
        """Encrypt content, or return it unchanged if the gallery is not encrypted.

        The context says where the content is stored, see `Cipher.seal`.
        """
        if self._cipher is None:
            return content
        return self._cipher.seal(content, self._identity + context)

    def _decrypt(self, content: bytes, context: bytes) -> bytes:
        """Decrypt what `_encrypt` returned for the same context."""
        if self._cipher is None:
            return content
        try:
            return self._cipher.open(content, self._identity + context)
        except ValueError as error:
            raise GalleryError(
                f"{self.place} cannot be decrypted ({error}); set MARGRAVE_GALLERY_KEY (in Python: "
                "key=) to the key with which it was created, or restore it from a copy"
            ) from None

    def _files(self) -> list[Path]:
        logs = [self.path.with_name(self.path.name + suffix) for suffix in ("-wal", "-shm")]
        return [path for path in (self.path, vectors_path(self.path), *logs) if path.exists()]


class EmbeddedStore:
    """Creates and opens galleries in files."""

    def create(self, address: str, card: GalleryCard, key: str | None) -> Gallery:
        """Create a new, empty gallery; its SQLite file appears once everything is complete."""
        path = Path(address.removeprefix("file://"))
        if path.exists():
            raise ValueError(f"{path} exists already; choose another name, or remove it")
        identity, salt = os.urandom(16), os.urandom(SALT_BYTES) if key else b""
        cipher = open_cipher(str(path), key, salt)
        text = card.to_json().encode()
        stored_card = text if cipher is None else cipher.seal(text, identity + b"card")
        VectorFile.create(vectors_path(path), identity, slot_bytes(card, cipher))
        Database.create(path, {"identity": identity, "salt": salt, "card": stored_card})
        return EmbeddedGallery(path, key)

    def open(self, address: str, key: str | None) -> Gallery:
        """Open an existing gallery."""
        path = Path(address.removeprefix("file://"))
        if not path.exists():
            raise NoGallery(f"{path}: no such gallery; create one with margrave enroll")
        return EmbeddedGallery(path, key)


def open_cipher(place: str, key: str | None, salt: bytes) -> Cipher | None:
    """The cipher of a gallery, or None if the gallery is not encrypted: its salt is then empty.

    Raises:
        ValueError: a key is missing, or is given for a gallery that is not encrypted.
    """
    if salt and key is None:
        raise ValueError(
            f"{place} is encrypted; give its key in MARGRAVE_GALLERY_KEY (in Python: key=)"
        )
    if key is not None and not salt:
        raise ValueError(
            f"{place} is not encrypted, but a key is given; leave out MARGRAVE_GALLERY_KEY "
            "(in Python: key=), or move the people to a new gallery: margrave gallery export, "
            "then import"
        )
    return None if key is None else Cipher(key, salt)


def with_checksum(content: bytes) -> bytes:
    """The content, preceded by its CRC-32 in 4 bytes."""
    return zlib.crc32(content).to_bytes(4, "big") + content


def slot_bytes(card: GalleryCard, cipher: Cipher | None) -> int:
    """Number of bytes per slot: the stored vector, plus what encryption adds."""
    return card.dimension * (2 if card.half else 4) + (
        0 if cipher is None else NONCE_BYTES + TAG_BYTES
    )


def vectors_path(path: Path) -> Path:
    """The path of the vector file, which lies beside the SQLite file."""
    return path.with_name(path.name + "-vectors")
