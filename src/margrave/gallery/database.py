"""The SQLite file of an embedded gallery: people, their crops, and the slots of their vectors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from margrave.files import atomic_write
from margrave.gallery.contract import GalleryError, Unavailable

APPLICATION_ID = 0x4D475256
"""SQLite's application id, which marks the file as a Margrave gallery."""
VERSION = 1
"""Version of the file's format."""
BUSY_SECONDS = 10.0
"""How long a call waits while another process is writing, in seconds."""

# The column "key" is a hash of the person's name, by which the row is looked up. "changed" is the
# generation of a row's last change, see `Database.current_generation`. "free" lists the free slots.
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE people (
    id INTEGER PRIMARY KEY,
    slot INTEGER NOT NULL UNIQUE,
    key BLOB NOT NULL UNIQUE,
    record BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    changed INTEGER NOT NULL
);
CREATE INDEX people_changed ON people (changed);
CREATE TABLE crops (id INTEGER PRIMARY KEY, person INTEGER NOT NULL, content BLOB NOT NULL);
CREATE INDEX crops_of_person ON crops (person);
CREATE TABLE free (slot INTEGER PRIMARY KEY, changed INTEGER NOT NULL);
CREATE INDEX free_changed ON free (changed);
"""


class Row(NamedTuple):
    """A person's row in the table ``people``.

    Attributes:
        id: the row's primary key.
        slot: index of the vector's slot in the vector file.
        record: the name, the number of images, the time of enrollment and the vector's norm, as
            text; encrypted if the gallery is encrypted.
        checksum: CRC-32 of the slot's bytes.
    """

    id: int
    slot: int
    record: bytes
    checksum: int


_SELECT_ROW = "SELECT id, slot, record, checksum FROM people"
_ROW_TYPES = (int, int, bytes, int)
_MAX_INTEGER = 2**32 - 1
"""Maximum of ids, slots and checksums; a larger number is damage."""


class Database:
    """The gallery's tables. SQLite overwrites deleted content with zeros (``secure_delete``).

    Args:
        path: the SQLite file.

    Raises:
        ValueError: the file is not a gallery, is damaged, or has a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                header = file.read(100)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror})") from error
        # SQLite stores the application id at byte 68 of its 100-byte header.
        has_application_id = header[68:72] == APPLICATION_ID.to_bytes(4, "big")
        if not header.startswith(b"SQLite format 3\0") or not has_application_id:
            raise ValueError(
                f"{path} is not a gallery, or is damaged; check the path, or restore the file "
                "from a copy"
            )
        self.connection = sqlite3.connect(
            path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        # The generation and the released slots of the current write transaction.
        self._new_generation = 0
        self._released: set[int] = set()
        try:
            self._configure()
        except BaseException:
            self.connection.close()
            raise

    def _configure(self) -> None:
        with self.explain_errors():
            for pragma in (
                "trusted_schema = OFF",
                "journal_mode = WAL",
                "synchronous = FULL",
                "secure_delete = ON",
                # VACUUM makes a temporary copy of the database, which must not remain on disk.
                "temp_store = MEMORY",
            ):
                self.connection.execute(f"PRAGMA {pragma}")
            version = self.connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise ValueError(
                    f"{self.path} is a gallery of format {version}, but this version of Margrave "
                    f"reads {VERSION}; use the version of Margrave that wrote it"
                )

    @staticmethod
    def create(path: Path, meta: dict[str, bytes]) -> None:
        """Create a new file with the given metadata; the file appears once it is complete."""
        with atomic_write(path) as temporary:
            connection = sqlite3.connect(temporary, isolation_level=None)
            connection.executescript(
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; "
                f"{_SCHEMA}"
            )
            rows = [*meta.items(), ("generation", 0)]
            connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            connection.close()

    def read_meta(self, name: str) -> bytes:
        """Read a value of the gallery's metadata.

        Raises:
            ValueError: the value is missing.
        """
        with self.explain_errors():
            row = self.connection.execute(
                "SELECT value FROM meta WHERE name = ?", (name,)
            ).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise self.damage_error(f"its metadata has no {name}")
        return row[0]

    def set_meta(self, name: str, value: bytes) -> None:
        """Replace a value of the metadata; call it within `write_transaction`."""
        self.connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    def current_generation(self) -> int:
        """The generation: the number of write transactions that have changed the gallery.

        A process remembers the generation that it has read, and later reads only newer changes.
        """
        row = self.connection.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()
        if row is None or not isinstance(row[0], int) or not 0 <= row[0] < 2**62:
            raise self.damage_error("its metadata has no generation")
        return row[0]

    def _select(
        self, types: tuple[type, ...], query: str, parameters: tuple[Any, ...] = ()
    ) -> list[tuple[Any, ...]]:
        """Rows of a query, after checking the columns: SQLite itself allows any type in any column.

        Raises:
            ValueError: a value does not have its column's type, or an integer is out of range.
        """
        rows = self.connection.execute(query, parameters).fetchall()
        for row in rows:
            for value, expected in zip(row, types, strict=True):
                if type(value) is not expected or (
                    expected is int and not 0 <= value <= _MAX_INTEGER
                ):
                    raise self.damage_error(f"a column contains the invalid value {value!r:.30}")
        return rows

    def _select_slots(self, query: str, parameters: tuple[Any, ...] = ()) -> list[int]:
        """The slots in the only column of a query."""
        return [slot for (slot,) in self._select((int,), query, parameters)]

    @contextmanager
    def write_transaction(self) -> Iterator[None]:
        """Run a write transaction, one process at a time; its changes are on disk when it ends."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            changes_before = self.connection.total_changes
            self._new_generation = self.current_generation() + 1
            self._released.clear()
            yield
            if self.connection.total_changes != changes_before:
                self.connection.execute(
                    "UPDATE meta SET value = ? WHERE name = 'generation'", (self._new_generation,)
                )
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def count(self) -> int:
        """Number of people."""
        return self.connection.execute("SELECT count(*) FROM people").fetchone()[0]

    def count_crops(self) -> int:
        """Number of kept crops."""
        return self.connection.execute("SELECT count(*) FROM crops").fetchone()[0]

    def row_by_key(self, key: bytes) -> Row | None:
        """The row of the person whose name has this hash, or None."""
        rows = self._select(_ROW_TYPES, f"{_SELECT_ROW} WHERE key = ?", (key,))
        return Row(*rows[0]) if rows else None

    def row_by_slot(self, slot: int) -> Row | None:
        """The row of the person whose vector is in this slot, or None."""
        rows = self._select(_ROW_TYPES, f"{_SELECT_ROW} WHERE slot = ?", (slot,))
        return Row(*rows[0]) if rows else None

    def rows(self) -> list[Row]:
        """The rows of all people."""
        return [Row(*row) for row in self._select(_ROW_TYPES, _SELECT_ROW)]

    def occupied_since(self, generation: int) -> list[int]:
        """Slots of the people whose rows changed after a generation."""
        return self._select_slots("SELECT slot FROM people WHERE changed > ?", (generation,))

    def freed_since(self, generation: int) -> list[int]:
        """Slots that were freed after a generation and are still free; -1 returns all of them."""
        return self._select_slots("SELECT slot FROM free WHERE changed > ?", (generation,))

    def count_slots(self) -> int:
        """Number of slots, up to and including the last one that was ever used."""
        query = (
            "SELECT slot FROM (SELECT max(slot) AS slot FROM people "
            "UNION ALL SELECT max(slot) FROM free) WHERE slot IS NOT NULL"
        )
        return max(self._select_slots(query), default=-1) + 1

    def acquire_slot(self) -> int:
        """Take the lowest free slot, or a new slot; call it within `write_transaction`.

        The slot is new if none is free, or if this transaction released the lowest free one: after
        a rollback, that one would be needed again.
        """
        lowest = self._select_slots("SELECT slot FROM free ORDER BY slot LIMIT 1")
        if not lowest or lowest[0] in self._released:
            return self.count_slots()
        self.connection.execute("DELETE FROM free WHERE slot = ?", (lowest[0],))
        return lowest[0]

    def release_slot(self, slot: int) -> None:
        """Mark a slot as free; call it within `write_transaction`."""
        self._released.add(slot)
        self.connection.execute(
            "INSERT OR REPLACE INTO free (slot, changed) VALUES (?, ?)",
            (slot, self._new_generation),
        )

    def next_id(self) -> int:
        """An unused id for a new person; call it within `write_transaction`."""
        return self._select((int,), "SELECT coalesce(max(id), 0) + 1 FROM people")[0][0]

    def put(self, row: Row, key: bytes, crops: Sequence[bytes]) -> None:
        """Insert or replace a person's row, and add crops; call it within `write_transaction`.

        Args:
            row: the row.
            key: the hash of the person's name.
            crops: the crops to add, as stored.
        """
        self.connection.execute(
            "INSERT OR REPLACE INTO people (id, slot, key, record, checksum, changed) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (row.id, row.slot, key, row.record, row.checksum, self._new_generation),
        )
        self.connection.executemany(
            "INSERT INTO crops (person, content) VALUES (?, ?)",
            [(row.id, crop) for crop in crops],
        )

    def delete(self, row: Row) -> None:
        """Remove a person with all crops, and free the slot; call it within `write_transaction`."""
        self.connection.execute("DELETE FROM crops WHERE person = ?", (row.id,))
        self.connection.execute("DELETE FROM people WHERE id = ?", (row.id,))
        self.release_slot(row.slot)

    def crops(self, person_id: int) -> list[bytes]:
        """A person's kept crops as stored: encrypted if the gallery is encrypted."""
        query = "SELECT content FROM crops WHERE person = ? ORDER BY id"
        return [content for (content,) in self._select((bytes,), query, (person_id,))]

    def empty_log(self) -> None:
        """Move all changes from the write-ahead log into the database file; truncate the log."""
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rewrite(self) -> None:
        """Rewrite the whole file, so that no page contains remains of deleted content."""
        self.connection.execute("VACUUM")

    def is_intact(self) -> bool:
        """Whether SQLite's own check of all pages reports no damage."""
        return self.connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]

    def damage_error(self, problem: str) -> GalleryError:
        """An error which says that the file is damaged, and names the problem and the remedy."""
        return GalleryError(
            f"{self.path} is damaged: {problem}; restore it from a copy or an export "
            "(margrave gallery export)"
        )

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Replace SQLite's errors in the block with errors that say what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise Unavailable(
                    f"{self.path} has been locked by another process for more than "
                    f"{BUSY_SECONDS:.0f} s; try again when that process has finished"
                ) from error
            raise GalleryError(
                f"{self.path}: {error}; check that the disk is neither full nor read-only"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self.damage_error(str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
