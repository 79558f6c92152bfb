"""API keys with scopes, stored as hashes in a file, which every change replaces atomically."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
"""Scope -> what it allows."""
FORMAT_VERSION = 1
_TOKEN_PREFIX = "mgv"


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key as stored in the file. Clients send the key's token, ``mgv_<id>_<secret>``.

    Attributes:
        id: identifies the key in logs.
        label: a description for humans.
        scopes: what the key allows, as names from ``SCOPES``.
        digest: SHA-256 of the secret. The secret has 256 random bits, so a fast hash is safe.
        created: time of creation, UTC in ISO 8601.
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
        # Time of modification, inode and size of the file that `_keys` was read from.
        self._file_state: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self.keys()

    def keys(self) -> dict[str, Key]:
        """The keys in the file, which is read again if it has changed: id -> key.

        Raises:
            ValueError: the file is damaged.
            OSError: the file is unreadable.
        """
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._keys, self._file_state = {}, None
            return self._keys
        state = stat.st_mtime_ns, stat.st_ino, stat.st_size
        if self._file_state != state:
            self._keys, self._file_state = _read_keys(self.path), state
        return self._keys

    def key_of_token(self, token: str) -> Key | None:
        """The key that a token belongs to, or None if the token is invalid.

        Digests are compared in constant time, so that the time reveals nothing about the secret.
        """
        prefix, _, id_and_secret = token.partition("_")
        key_id, _, secret = id_and_secret.partition("_")
        key = self.keys().get(key_id)
        digest = hashlib.sha256(secret.encode(errors="replace")).hexdigest()
        # For an unknown id, compare with a digest that no secret has: this takes the same time.
        expected = key.digest if key else "0" * 64
        is_equal = hmac.compare_digest(digest.encode(), expected.encode())
        return key if is_equal and prefix == _TOKEN_PREFIX else None

    def new(self, label: str, scopes: Sequence[str]) -> tuple[Key, str]:
        """Create a key.

        Args:
            label: a description for humans.
            scopes: names from ``SCOPES``.

        Returns:
            The key and its token; the token is not stored.

        Raises:
            ValueError: there are no scopes, or a scope is unknown.
        """
        if unknown := [scope for scope in scopes if scope not in SCOPES]:
            raise ValueError(f"unknown scope {unknown[0]!r}; {suggest(unknown[0], SCOPES)}")
        if not scopes:
            raise ValueError(f"a key without scopes can do nothing; {suggest('', SCOPES)}")
        key, token = _create_key(label, scopes)
        with self._locked_keys() as keys:
            keys[key.id] = key
        return key, token

    def revoke(self, key_id: str) -> Key:
        """Remove a key.

        Raises:
            ValueError: no key has this id.
        """
        with self._locked_keys() as keys:
            return self._pop_key(keys, key_id)

    def rotate(self, key_id: str) -> tuple[Key, str]:
        """Replace a key by a new key with the same label and scopes, in one atomic step.

        Returns:
            The new key and its token; the token is not stored.

        Raises:
            ValueError: no key has this id.
        """
        with self._locked_keys() as keys:
            old = self._pop_key(keys, key_id)
            key, token = _create_key(old.label, old.scopes)
            keys[key.id] = key
        return key, token

    def _pop_key(self, keys: dict[str, Key], key_id: str) -> Key:
        if key_id not in keys:
            raise ValueError(f"{self.path} has no key {key_id!r}; {suggest(key_id, keys)}")
        return keys.pop(key_id)

    @contextmanager
    def _locked_keys(self) -> Iterator[dict[str, Key]]:
        """Lock the file, yield its keys by id, and write them back after the block."""
        # Each change replaces the key file, and a lock on that file would be lost. So lock another
        # file.
        lock_path = self.path.with_name(f".{self.path.name}.lock")
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = dict(self.keys())
            yield keys
            self._write_keys(keys)
        finally:
            os.close(lock)

    def _write_keys(self, keys: dict[str, Key]) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "keys": [asdict(key) for key in keys.values()],
        }
        with atomic_write(self.path) as temporary:
            temporary.touch(0o600)
            os.chmod(temporary, 0o600)
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        # The next call of `keys` reads the file again.
        self._file_state = None


def _create_key(label: str, scopes: Sequence[str]) -> tuple[Key, str]:
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


def _read_keys(path: Path) -> dict[str, Key]:
    content: Any = read_json(read_bytes(path), str(path))
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} is not a key file of this version of Margrave; move it away and create new "
            "keys: margrave keys new"
        )
    try:
        keys = [Key(**entry) for entry in content["keys"]]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); move it away and create new keys: margrave keys new"
        ) from None
    for key in keys:
        texts = (key.id, key.digest, *key.scopes) if isinstance(key.scopes, list) else (None,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{path} is damaged; move it away and create new keys: margrave keys new"
            )
    return {key.id: replace(key, scopes=tuple(key.scopes)) for key in keys}
