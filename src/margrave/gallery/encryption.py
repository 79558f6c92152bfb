"""Encryption at rest: without the key, a stolen file reveals only sizes and counts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

KEY_BYTES = 32
SALT_BYTES = 16
NONCE_BYTES, TAG_BYTES = 12, 16
"""Number of bytes that encryption adds before and after the content."""
MIN_PASSPHRASE_LENGTH = 12
_SCRYPT_COST = 2**15
"""scrypt's cost parameter n; with r = 8, scrypt takes 32 MiB of memory."""


class Cipher:
    """AES-256-GCM with the user's key; needs the extra ``gallery``.

    Args:
        key: 32 random bytes in base64 (``margrave gallery new-key``), or a passphrase of at least
            12 characters, which is stretched by scrypt.
        salt: `SALT_BYTES` random bytes, which the gallery stores unencrypted.

    Raises:
        ValueError: the key is too short, or the cryptography package is not installed.
    """

    def __init__(self, key: str, salt: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError as error:
            raise ValueError(
                "an encrypted gallery needs the cryptography package: "
                "pip install 'margrave[gallery]'"
            ) from error
        secret = _secret(key, salt)
        self._aead = AESGCM(hmac.digest(secret, b"margrave content", hashlib.sha256))
        self._name_key = hmac.digest(secret, b"margrave names", hashlib.sha256)

    def seal(self, content: bytes, context: bytes) -> bytes:
        """Encrypt content, and authenticate it together with a context (the associated data).

        The context says where the content is stored. `open` needs the same context, so it detects
        encrypted content that was moved to another place.

        Returns:
            The nonce, the ciphertext and the tag, concatenated.
        """
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, content, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Decrypt content that `seal` encrypted with the same context.

        Raises:
            ValueError: the key or the context differs, or the content was changed.
        """
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise ValueError("wrong key or damaged content") from None

    def pseudonym(self, name: bytes) -> bytes:
        """A keyed hash of a name, by which the name can be looked up without being revealed."""
        return hmac.digest(self._name_key, name, hashlib.sha256)


def new_key() -> str:
    """Create a random key for ``MARGRAVE_GALLERY_KEY``.

    >>> len(new_key())
    44
    """
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _secret(key: str, salt: bytes) -> bytes:
    """The gallery's 32-byte secret: a salted HMAC of a random key, or scrypt of a passphrase."""
    try:
        random_key = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        random_key = b""
    if len(random_key) == KEY_BYTES:
        return hmac.digest(salt, random_key, hashlib.sha256)
    if len(key) < MIN_PASSPHRASE_LENGTH:
        raise ValueError(
            f"a gallery key of {len(key)} characters is too short; use margrave gallery new-key, "
            f"or a passphrase of at least {MIN_PASSPHRASE_LENGTH} characters"
        )
    # scrypt needs slightly more than its 32 MiB, which are also the default of `maxmem`.
    return hashlib.scrypt(
        key.encode(), salt=salt, n=_SCRYPT_COST, r=8, p=1, maxmem=2**26, dklen=KEY_BYTES
    )
