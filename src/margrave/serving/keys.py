"""API keys with scopes, stored as hashes in a file; every change replaces the file atomically."""

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
    "identify": "search the gallery for a face",
    "enroll": "enroll people",
    "forget": "remove people",
    "list": "see who is enrolled",
    "metrics": "read the metrics",
}
FORMAT_VERSION = 1
_TOKEN_PREFIX = "mgv"


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as the file stores it. A client's token is ``mgv_<id>_<secret>``.

    Attributes:
        id: what logs call the key.
        label: a description for people.
        scopes: what the key allows, see ``SCOPES``.
        digest: SHA-256 of the secret; with 256 random bits it needs no slower hash.
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
        path: the file; it need not exist yet.

    Raises:
        ValueError: the file is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._version: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self.keys()

    def keys(self) -> dict[str, Key]:
        """The keys that the file contains now, by id.

        Raises:
            ValueError: the file is damaged.
            OSError: the file is unreadable.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._keys, self._version = {}, None
            return self._keys
        version = stat.st_mtime_ns, stat.st_ino, stat.st_size
        if self._version != version:
            self._keys, self._version = _read(self.path), version
        return self._keys

    def allowed(self, token: str) -> Key | None:
        """The key of a valid token, or None; compares in constant time."""
        prefix, _, rest = token.partition("_")
        key_id, _, secret = rest.partition("_")
        key = self.keys().get(key_id)
        digest = hashlib.sha256(secret.encode(errors="replace")).hexdigest()
        expected = key.digest if key else "0" * 64
        is_equal = hmac.compare_digest(digest.encode(), expected.encode())
        return key if is_equal and prefix == _TOKEN_PREFIX else None

    def new(self, label: str, scopes: Sequence[str]) -> tuple[Key, str]:
        """Create a key.

        Args:
            label: a description for people.
            scopes: names from ``SCOPES``.

        Returns:
            The key and its token, which is stored nowhere.

        Raises:
            ValueError: there are no scopes, or a scope is unknown.
        """
        if unknown := [scope for scope in scopes if scope not in SCOPES]:
            raise ValueError(f"unknown scope {unknown[0]!r}; {suggest(unknown[0], SCOPES)}")
        if not scopes:
            raise ValueError(f"a key without scopes can do nothing; {suggest('', SCOPES)}")
        key, token = _create(label, scopes)
        with self._changing() as keys:
            keys[key.id] = key
        return key, token

    def revoke(self, key_id: str) -> Key:
        """Remove a key.

        Raises:
            ValueError: no key has this id.
        """
        with self._changing() as keys:
            return self._pop(keys, key_id)

    def rotate(self, key_id: str) -> tuple[Key, str]:
        """Replace a key by a new one with the same label and scopes, in one step.

        Returns:
            The new key and its token, as `new` does.

        Raises:
            ValueError: no key has this id.
        """
        with self._changing() as keys:
            old = self._pop(keys, key_id)
            key, token = _create(old.label, old.scopes)
            keys[key.id] = key
        return key, token

    def _pop(self, keys: dict[str, Key], key_id: str) -> Key:
        if key_id not in keys:
            raise ValueError(f"{self.path} has no key {key_id!r}; {suggest(key_id, keys)}")
        return keys.pop(key_id)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """Yield the keys by id, and write them after the block; other processes' changes wait."""
        # Not a lock on the file itself: it is replaced, so others would lock another file.
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
        self._version = None


def _create(label: str, scopes: Sequence[str]) -> tuple[Key, str]:
    """A new key and its token."""
    secret = secrets.token_urlsafe(32)
    key = Key(
        id=secrets.token_hex(4),
        label=label,
        scopes=tuple(scopes),
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return key, f"{_TOKEN_PREFIX}_{key.id}_{secret}"


def _read(path: Path) -> dict[str, Key]:
    content: Any = read_json(read_bytes(path), str(path))
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} holds no keys of this version of Margrave; create new ones: margrave keys new"
        )
    try:
        keys = [Key(**{**each, "scopes": tuple(each["scopes"])}) for each in content["keys"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); create new keys: margrave keys new"
        ) from None
    if not all(isinstance(value, str) for key in keys for value in (key.id, key.digest)):
        raise ValueError(f"{path} is damaged; create new keys: margrave keys new")
    return {key.id: key for key in keys}
