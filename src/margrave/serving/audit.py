"""The audit trail: a hash chain that records which API key enrolled or removed whom, and when."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from margrave.files import atomic_write, read_json
from margrave.matching import Refused

MAX_LINE_BYTES = 4096
"""Maximum length of a line in bytes."""
KEY_BYTES = 32
"""Number of random bytes from which a pseudonym key is made; the key is their 64 hexadecimal
digits."""


class TrailUnavailable(Exception):
    """The audit trail cannot be written, for example because the disk is full."""


class AuditTrail:
    """A file of JSON lines, each with the SHA-256 of the line before it.

    The trail contains no names. Instead of a name, a line contains a pseudonym, which is a keyed
    hash of the name. The pseudonym key is in a file beside the trail. It is needed to find the
    lines about a name; without it, the trail identifies nobody.

    Args:
        path: the trail's file, which is created if it does not exist.

    Raises:
        ValueError: the trail or its pseudonym key is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with self._locked():
            key_path = self.path.with_name(self.path.name + ".key")
            if os.fstat(self._file).st_size and not key_path.exists():
                raise ValueError(
                    f"{key_path}, the pseudonym key of {self.path}, is missing; restore it from a "
                    "copy, or start a new trail with --audit"
                )
            self._pseudonym_key = _read_pseudonym_key(key_path)
            self._drop_partial_line()
            verify_trail(self.path)

    def pseudonym(self, name: str) -> str:
        """The pseudonym of a name; Unicode-equivalent spellings have the same pseudonym."""
        name = unicodedata.normalize("NFC", name)
        return hmac.new(self._pseudonym_key, name.encode(), hashlib.sha256).hexdigest()

    def record(self, action: str, name: str, key_id: str, **details: Any) -> None:
        """Append a line to the trail; the line is on disk when this method returns.

        Args:
            action: such as ``enroll`` before a change, or ``enrolled`` after it.
            name: the person's name.
            key_id: id of the API key.
            details: more fields of the line; they must not contain faces or names.

        Raises:
            TrailUnavailable: the line cannot be written; the trail is unchanged.
            ValueError: the line is longer than `MAX_LINE_BYTES`; the trail is unchanged.
        """
        with self._locked():
            try:
                end = self._drop_partial_line()
                line = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "action": action,
                    "person": self.pseudonym(name),
                    "key": key_id,
                    **details,
                    "previous": _digest(_last_line(self._file)),
                }
                encoded = json.dumps(line).encode() + b"\n"
                if len(encoded) > MAX_LINE_BYTES:
                    raise ValueError(
                        f"a line of the audit trail has {len(encoded)} bytes, at most "
                        f"{MAX_LINE_BYTES} are allowed; pass fewer details"
                    )
                self._append(encoded, end)
            except OSError as error:
                raise TrailUnavailable(
                    f"the audit trail cannot be written ({error.strerror}), so nothing was changed"
                ) from error

    @contextmanager
    def changing(
        self, actions: tuple[str, str], name: str, key_id: str, **details: Any
    ) -> Iterator[dict[str, Any]]:
        """Record a change before the block makes it, and record its outcome afterwards.

        If the block refuses the change, the second line's action is ``refused``. Without a second
        line, the outcome is not known, as after a crash.

        Args:
            actions: the actions of the first line, and of the second one if the block succeeds,
                such as ``enroll`` and ``enrolled``.
            name: the person's name.
            key_id: id of the API key.
            details: more fields of the first line.

        Yields:
            An empty dict, which the block may fill with more fields of the second line.

        Raises:
            TrailUnavailable: a line cannot be written. If it is the first line, the block does not
                run.
        """
        self.record(actions[0], name, key_id, **details)
        outcome: dict[str, Any] = {}
        try:
            yield outcome
        except Refused:
            with suppress(TrailUnavailable):
                self.record("refused", name, key_id)
            raise
        try:
            self.record(actions[1], name, key_id, **outcome)
        except TrailUnavailable as error:
            raise TrailUnavailable(
                f"the change was made ({actions[1]}), but the audit trail could not be completed"
            ) from error

    def _append(self, line: bytes, end: int) -> None:
        """Append a line; if writing fails, truncate the trail to its previous size, `end`."""
        try:
            unwritten = memoryview(line)
            while unwritten:
                unwritten = unwritten[os.write(self._file, unwritten) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise

    def _drop_partial_line(self) -> int:
        """Remove an incomplete last line, which a failed write left; return the trail's size."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
        end = size - len(tail) + tail.rfind(b"\n") + 1
        if end < size:
            os.ftruncate(self._file, end)
        return end

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the trail against other threads and processes."""
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the file."""
        os.close(self._file)


def verify_trail(path: str | Path) -> int:
    """Verify a trail's hash chain; return the number of lines.

    The chain does not reveal that the last line was changed, or that final lines were removed.

    Raises:
        ValueError: a line was changed, removed or inserted; the message names the line at which the
            chain breaks.
    """
    previous, count = b"", 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            count += 1
            record = read_json(line, f"{path}, line {count}")
            is_chained = isinstance(record, dict) and record.get("previous") == _digest(previous)
            if not is_chained or not line.endswith(b"\n"):
                raise ValueError(
                    f"{path}, line {count} does not follow the line before it: the trail was "
                    "changed; keep the file as evidence and start a new one with --audit"
                )
            previous = line
    return count


def _read_pseudonym_key(path: Path) -> bytes:
    """Read the pseudonym key; create one if the file does not exist.

    Call it while the trail is locked: otherwise two processes could each create a key.
    """
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.touch(0o600)
            temporary.write_text(secrets.token_hex(KEY_BYTES))
    key = path.read_bytes()
    if not re.fullmatch(b"[0-9a-f]{%d}" % (2 * KEY_BYTES), key):
        raise ValueError(
            f"{path} is damaged: it should consist of {2 * KEY_BYTES} hexadecimal digits; restore "
            "it from a copy"
        )
    return key


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _last_line(file: int) -> bytes:
    """The last line of an open file, with its line break; empty if the file is empty."""
    size = os.fstat(file).st_size
    tail = os.pread(file, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
    # Skip the last line's own line break.
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]
