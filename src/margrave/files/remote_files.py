"""Files wherever fsspec reaches, whole or in parts, asked for again where a server fails."""

from __future__ import annotations

import time
from typing import Any

import fsspec

from margrave.files.ordinary import read_bytes

ATTEMPTS = 4
STORES = (
    "abfs", "abfss", "adl", "az", "file", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https",
    "local", "memory", "oci", "oss", "s3", "s3a", "sftp", "ssh", "webhdfs",
)  # fmt: skip
"""Where bytes are fetched from; others of fsspec's interpret files or start programs."""


def _filesystem(address: str) -> tuple[Any, str]:
    protocol = address.partition("://")[0]
    # An address may come from a file. Several in one would be handed from one to the next.
    if protocol not in STORES or "::" in address:
        raise ValueError(
            f"{address} cannot be reached: shards are fetched from {', '.join(STORES)}"
        )
    try:
        # Found again for every process: fsspec's connections do not survive a fork.
        return fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address} cannot be reached: {error}") from None


def whole_file(address: str) -> bytes:
    """A file on disk or at an address.

    Raises:
        ValueError: there is none, or no library for such addresses.
        ConnectionError: it does not answer.
    """
    if "://" not in address:
        try:
            return read_bytes(address)
        except OSError as error:
            raise ValueError(f"{address} cannot be read ({error.strerror})") from None
    filesystem, path = _filesystem(address)
    for attempt in range(ATTEMPTS):
        try:
            return filesystem.cat_file(path)
        except FileNotFoundError:
            raise ValueError(
                f"{address} does not exist; give the address of a folder that margrave pack wrote"
            ) from None
        except Exception as error:  # whatever the file system's own library raises
            _wait(attempt, address, error)
    raise AssertionError


def file_ranges(addresses: list[str], starts: list[int], ends: list[int]) -> list[bytes]:
    """Parts of files, fetched side by side, those that fail again after a while.

    Args:
        addresses: of one server.
        starts: first byte of each part.
        ends: the byte after each part.

    Raises:
        ValueError: another number of bytes came than was asked for.
        ConnectionError: the server does not answer.
    """
    filesystem, _ = _filesystem(addresses[0])
    paths = [_filesystem(address)[1] for address in addresses]
    found: list[Any] = [None] * len(paths)
    for attempt in range(ATTEMPTS):
        wanted = [n for n, content in enumerate(found) if not isinstance(content, bytes)]
        answers = filesystem.cat_ranges(
            [paths[n] for n in wanted],
            [starts[n] for n in wanted],
            [ends[n] for n in wanted],
            on_error="return",
        )
        failed = None
        for n, answer in zip(wanted, answers, strict=True):
            found[n] = answer
            if isinstance(answer, FileNotFoundError):
                raise ValueError(f"{addresses[n]} does not exist; fetch or pack the shards again")
            if not isinstance(answer, bytes):
                failed = n
            elif len(answer) != ends[n] - starts[n]:
                raise ValueError(
                    f"{addresses[n]}: {len(answer)} bytes came where {starts[n]} to {ends[n]} were "
                    "asked for; the shard is truncated, or the server does not serve ranges"
                )
        if failed is None:
            return found
        _wait(attempt, addresses[failed], found[failed])
    raise AssertionError


def _wait(attempt: int, address: str, error: Exception) -> None:
    """Before the next attempt; after the last, say why it failed."""
    if attempt == ATTEMPTS - 1:
        raise ConnectionError(
            f"{address} does not answer after {ATTEMPTS} attempts ({error}); training goes on from "
            "its checkpoint with --resume"
        ) from None
    time.sleep(2**attempt)
