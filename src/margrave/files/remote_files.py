"""Read local files and, through fsspec and with retries, remote files or byte ranges of them."""

from __future__ import annotations

import time
from typing import Any

import fsspec

from margrave.files.regular import read_bytes

ATTEMPTS = 4
PROTOCOLS = (
    "abfs", "abfss", "adl", "az", "file", "ftp", "gcs", "gs", "hdfs", "hf", "http", "https",
    "local", "memory", "oci", "oss", "s3", "s3a", "sftp", "ssh", "webhdfs",
)  # fmt: skip
"""Allowed protocols; the other protocols of fsspec interpret files or start programs."""


def _open_filesystem(address: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the file's path in that file system."""
    protocol = address.partition("://")[0]
    # The address may come from an untrusted file. "::" would chain several file systems.
    if protocol not in PROTOCOLS or "::" in address:
        raise ValueError(
            f"{address} has an unsupported protocol; supported are {', '.join(PROTOCOLS)}"
        )
    try:
        # Do not keep the file system: its connections do not survive a fork. fsspec itself caches
        # one per process.
        return fsspec.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address} cannot be opened: {error}") from None


def read_file(address: str) -> bytes:
    """Read a local file or URL completely.

    Raises:
        ValueError: the file does not exist, the server denies access, or the protocol is not
            allowed or needs a missing library.
        ConnectionError: the server does not respond.
    """
    if "://" not in address:
        try:
            return read_bytes(address)
        except OSError as error:
            raise ValueError(f"{address} cannot be read ({error.strerror})") from None
    filesystem, path = _open_filesystem(address)
    for attempt in range(ATTEMPTS):
        try:
            return filesystem.cat_file(path)
        except FileNotFoundError:
            raise ValueError(
                f"{address} does not exist; give the URL of a folder written by margrave pack"
            ) from None
        except Exception as error:  # each protocol's library raises its own errors
            _wait_or_raise(attempt, address, error)
    raise AssertionError  # not reached: the last attempt returns or raises


def read_ranges(addresses: list[str], starts: list[int], ends: list[int]) -> list[bytes]:
    """Read byte ranges of remote files concurrently; failed ranges are retried after a delay.

    Args:
        addresses: the URL of each range, all on one server.
        starts: offset of the first byte of each range.
        ends: offset after the last byte of each range.

    Raises:
        ValueError: a file does not exist, the server denies access, a response has the wrong
            length, or the protocol is not allowed or needs a missing library.
        ConnectionError: the server does not respond.
    """
    filesystem, _ = _open_filesystem(addresses[0])
    paths = [_open_filesystem(address)[1] for address in addresses]
    contents: list[Any] = [None] * len(paths)
    for attempt in range(ATTEMPTS):
        missing = [n for n, content in enumerate(contents) if not isinstance(content, bytes)]
        responses = filesystem.cat_ranges(
            [paths[n] for n in missing],
            [starts[n] for n in missing],
            [ends[n] for n in missing],
            on_error="return",
        )
        failed_index = None
        for n, response in zip(missing, responses, strict=True):
            contents[n] = response
            if isinstance(response, FileNotFoundError):
                raise ValueError(f"{addresses[n]} does not exist; upload or pack the shards again")
            if not isinstance(response, bytes):
                failed_index = n
            elif len(response) != ends[n] - starts[n]:
                raise ValueError(
                    f"{addresses[n]}: got {len(response)} bytes for the range {starts[n]} to "
                    f"{ends[n]}; the shard is truncated, or the server does not support ranges"
                )
        if failed_index is None:
            return contents
        _wait_or_raise(attempt, addresses[failed_index], contents[failed_index])
    raise AssertionError  # not reached: the last attempt returns or raises


def _wait_or_raise(attempt: int, address: str, error: Exception) -> None:
    """Wait before the next attempt; after the last one, raise a ConnectionError.

    Raises:
        ValueError: the server denies access, so another attempt would fail, too.
        ConnectionError: this was the last attempt.
    """
    # The library for http raises an error of its own, with the response's status.
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        raise ValueError(
            f"{address}: the server denies access ({error}); check the address and your credentials"
        ) from None
    if attempt == ATTEMPTS - 1:
        raise ConnectionError(
            f"{address} does not respond after {ATTEMPTS} attempts ({error}); resume training from "
            "its checkpoint with --resume"
        ) from None
    time.sleep(2**attempt)
