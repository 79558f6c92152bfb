"""API keys: random, hashed at rest, with scopes; every change replaces the file in one step."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from margrave.files import atomic_write, read_bytes, read_json
from margrave.registry import suggest

SCOPES = {
    "verify": "compare two images",
    "identify": "search a face in the gallery",
    "enroll": "enroll people",
    "forget": "remove people",
    "list": "see who is enrolled",
    "metrics": "read the metrics",
}
FORMAT_VERSION = 1
_MARK = "mgv"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as the file keeps it.

    Attributes:
        id: what logs call it.
        label: for people.
        scopes: what it may do, see ``SCOPES``.
        digest: SHA-256 of the secret, which has 256 random bits and needs no slower hash.
        created: UTC in ISO 8601.
    """

    id: str
    label: str
    scopes: tuple[str, ...]
    digest: str
    created: str


class KeyFile:
    """API keys in a file; a running service sees changes at once.

    Args:
        path: of the file; it need not exist yet.

    Raises:
        ValueError: a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read_at: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self.keys()

    def keys(self) -> dict[str, Key]:
        """The keys by id, as the file has them now.

        Raises:
            ValueError: a damaged file.
            OSError: an unreadable one.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._keys, self._read_at = {}, None
            return self._keys
        version = stat.st_mtime_ns, stat.st_ino, stat.st_size
        if self._read_at != version:
            self._keys, self._read_at = _read(self.path), version
        return self._keys

    def allowed(self, token: str) -> Key | None:
        """The key of a token, or None; the time it takes tells nothing of any secret."""
        mark, _, rest = token.partition("_")
        number, _, secret = rest.partition("_")
        key = self.keys().get(number)
        digest = hashlib.sha256(secret.encode(errors="replace")).hexdigest()
        expected = key.digest if key else "0" * 64
        same = hmac.compare_digest(digest.encode(), expected.encode())
        return key if same and mark == _MARK else None

    def new(self, label: str, scopes: Sequence[str]) -> tuple[Key, str]:
        """Make a key.

        Args:
            label: for people.
            scopes: of ``SCOPES``.

        Returns:
            The key, and the token, which is not kept anywhere.

        Raises:
            ValueError: no scopes, or an unknown one.
        """
        if unknown := [scope for scope in scopes if scope not in SCOPES]:
            raise ValueError(f"unknown scope {unknown[0]!r}; {suggest(unknown[0], SCOPES)}")
        if not scopes:
            raise ValueError(f"a key without scopes can do nothing; {suggest('', SCOPES)}")
        key, token = _make(label, scopes)
        with self._changing() as keys:
            keys[key.id] = key
        return key, token

    def revoke(self, number: str) -> Key:
        """Remove a key.

        Raises:
            ValueError: there is none of this id.
        """
        with self._changing() as keys:
            return self._pop(keys, number)

    def rotate(self, number: str) -> tuple[Key, str]:
        """Replace a key by another of the same label and scopes, in one step.

        Raises:
            ValueError: there is none of this id.
        """
        with self._changing() as keys:
            old = self._pop(keys, number)
            key, token = _make(old.label, old.scopes)
            keys[key.id] = key
        return key, token

    def _pop(self, keys: dict[str, Key], number: str) -> Key:
        if number not in keys:
            raise ValueError(f"{self.path} has no key {number!r}; {suggest(number, keys)}")
        return keys.pop(number)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """The keys, to be changed; other processes that change them wait meanwhile."""
        # The file itself is replaced, so a lock on it would not be seen by who opens it later.
        lock_path = self.path.with_name(f".{self.path.name}.lock")
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = dict(self.keys())
            yield keys
            self._write(keys)
        finally:
            os.close(lock)

    def _write(self, keys: dict[str, Key]) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "keys": [asdict(key) for key in keys.values()],
        }
        with atomic_write(self.path) as temporary:
            temporary.touch(0o600)
            os.chmod(temporary, 0o600)
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        self._read_at = None


def _make(label: str, scopes: Sequence[str]) -> tuple[Key, str]:
    """A key and its token."""
    secret = secrets.token_urlsafe(32)
    key = Key(
        id=secrets.token_hex(4),
        label=label,
        scopes=tuple(scopes),
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return key, f"{_MARK}_{key.id}_{secret}"


def _read(path: Path) -> dict[str, Key]:
    content: Any = read_json(read_bytes(path), str(path))
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{path} holds no keys of this version of Margrave; margrave keys new")
    try:
        keys = [Key(**{**each, "scopes": tuple(each["scopes"])}) for each in content["keys"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); make new keys: margrave keys new") from None
    if not all(isinstance(value, str) for key in keys for value in (key.id, key.digest)):
        raise ValueError(f"{path} is damaged; make new keys: margrave keys new")
    return {key.id: key for key in keys}
