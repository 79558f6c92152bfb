"""Calls a Milvus server with a time limit; error messages say what to do."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from margrave.files import first_line
from margrave.gallery.contract import Unavailable

TOKEN_VARIABLE = "MARGRAVE_MILVUS_TOKEN"
"""Environment variable with the server's token: ``user:password`` or an API key."""
PORT = 19530
"""Default port of a Milvus server."""
TIMEOUT = 10.0
"""Default maximum duration of a call, in seconds."""
MAX_COLLECTION_LENGTH = 200
"""Maximum length of the name of a gallery's collection. Milvus allows 255 characters, but the
collection of crops has the same name with a suffix."""
VECTORS = "vector"
"""Name of the vector field, which is indexed."""
MAX_PAGE_ROWS = 16_000
"""Maximum number of rows per response; Milvus's own limit is 16 384."""
MEAN_PAGE_ROWS = 8_000
"""`MilvusServer.rows` uses enough queries that a response has at most this many rows on average."""
UNREACHABLE_SIGNS = (
    "unavailable",
    "timeout",
    "timed out",
    "deadline",
    "connect",
    "closed channel",
    # A server other than Milvus does not implement the call.
    "unimplemented",
)
"""An error message with one of these words means that the server cannot be reached."""
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class MilvusAddress:
    """The address of a gallery on a Milvus server.

    Attributes:
        host: the server's host name or IP address.
        port: the server's port.
        collection: name of the collection that holds the gallery.
    """

    host: str
    port: int
    collection: str

    def __str__(self) -> str:
        return f"milvus://{self.server}/{self.collection}"

    @property
    def server(self) -> str:
        """Host and port: ``host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, address: str) -> MilvusAddress:
        """Parse ``milvus://host:port/collection``; the default port is 19530.

        Raises:
            ValueError: the address is not valid or contains a password.

        >>> str(MilvusAddress.parse("milvus://localhost/faces"))
        'milvus://localhost:19530/faces'
        """
        remedy = "write milvus://host:port/name"
        try:
            parts = urlsplit(address)
            port = parts.port or PORT
        except ValueError as error:
            raise ValueError(f"{address}: not a valid address ({error}); {remedy}") from error
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                f"milvus://…@{parts.hostname}: addresses are displayed and logged; remove the "
                f"password and set the environment variable {TOKEN_VARIABLE}=user:password"
            )
        collection = parts.path.removeprefix("/")
        if not parts.hostname or parts.query or parts.fragment or not collection:
            raise ValueError(f"{address}: not the address of a gallery; {remedy}")
        if not _COLLECTION.fullmatch(collection) or len(collection) > MAX_COLLECTION_LENGTH:
            raise ValueError(
                f"{address}: name = {collection[:60]!r}, must consist of letters, digits and "
                f"underscores, not begin with a digit, and have at most {MAX_COLLECTION_LENGTH} "
                "characters"
            )
        return cls(host=parts.hostname, port=port, collection=collection)


class MilvusServer:
    """A connection to a Milvus server; calls have a time limit and raise only `Unavailable`.

    Args:
        address: the address of a gallery on the server.
        timeout: maximum duration of a call, in seconds.

    Raises:
        ValueError: pymilvus is not installed, or the server does not answer.
    """

    def __init__(self, address: MilvusAddress, timeout: float = TIMEOUT) -> None:
        self.address, self.timeout = address, timeout
        try:
            import pymilvus
        except ImportError as error:
            raise ValueError(
                f"{address} needs pymilvus, which is not installed: pip install 'margrave[milvus]'"
            ) from error
        # pymilvus logs each error with a traceback in addition to raising it.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
        self.pymilvus: Any = pymilvus
        token = os.environ.get(TOKEN_VARIABLE, "")
        with self._explain_errors("connect"):
            self._client: Any = pymilvus.MilvusClient(
                uri=f"http://{address.server}", token=token, timeout=timeout
            )

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of ``pymilvus.MilvusClient`` and return its result.

        Raises:
            ValueError: the server does not answer in time, or refuses the call.
        """
        with self._explain_errors(method):
            return getattr(self._client, method)(*arguments, timeout=self.timeout, **options)

    def create(self, fields: Sequence[Any], metric: str, description: str, collection: str) -> None:
        """Create a collection with an exhaustive (FLAT) index of its vectors, and load it.

        Args:
            fields: the fields, as pymilvus objects.
            metric: the index's metric, such as ``IP``.
            description: the collection's description.
            collection: the collection's name; an existing collection with the same fields is kept.

        Raises:
            ValueError: see `call`.
        """
        self.call(
            "create_collection",
            collection,
            schema=self.pymilvus.CollectionSchema(fields, description=description),
            consistency_level="Strong",
            # With one shard, Milvus writes all rows of a call as one message.
            num_shards=1,
        )
        self.prepare(collection, metric)

    def prepare(self, collection: str, metric: str) -> None:
        """Index a collection if it has no index, and load it for searching.

        An interrupted call may leave a collection without an index; a restart of the server may
        unload it.

        Args:
            collection: the collection's name.
            metric: the index's metric, such as ``IP``.

        Raises:
            ValueError: see `call`.
        """
        if not self.call("list_indexes", collection):
            index = self._client.prepare_index_params()
            index.add_index(VECTORS, index_type="FLAT", metric_type=metric)
            self.call("create_index", collection, index)
        self.call("load_collection", collection)

    def count(self, collection: str) -> int:
        """Count a collection's rows.

        Raises:
            ValueError: see `call`.
        """
        response = self.call(
            "query",
            collection,
            filter="",
            output_fields=["count(*)"],
            consistency_level="Strong",
        )
        return int(response[0]["count(*)"])

    def rows(self, collection: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Iterate over all rows of a collection, in any order.

        Milvus returns at most 16 384 rows per query, and its iterator does not work with every
        server. So each query asks for the rows whose keys begin with one prefix. Keys are evenly
        distributed hexadecimal numbers. If a prefix matches too many rows, 16 longer prefixes
        replace it.

        Raises:
            ValueError: see `call`.
        """
        prefix_length, count = 0, self.count(collection)
        while count > 16**prefix_length * MEAN_PAGE_ROWS:
            prefix_length += 1
        prefixes = [""]
        if prefix_length:
            prefixes = [f"{number:0{prefix_length}x}" for number in range(16**prefix_length)]
        while prefixes:
            prefix = prefixes.pop()
            page = self.call(
                "query",
                collection,
                filter=f'key like "{prefix}%"' if prefix else "",
                limit=MAX_PAGE_ROWS,
                output_fields=[*fields],
                consistency_level="Strong",
            )
            if len(page) < MAX_PAGE_ROWS:
                yield from map(dict, page)
            else:
                prefixes += [f"{prefix}{digit:x}" for digit in range(16)]

    def compact(self, collection: str) -> bool:
        """Flush a collection and start a compaction, which drops deleted rows from its files.

        Returns:
            True if the compaction was started; False if the server's rate limit, which may allow
            only one compaction in ten seconds, refused it.

        Raises:
            ValueError: see `call`.
        """
        try:
            self.call("flush", collection, retry_on_rate_limit=False)
            self.call("compact", collection, retry_on_rate_limit=False)
        except ValueError as error:
            if "rate limit" not in str(error).lower():
                raise
            return False
        return True

    def version(self) -> str:
        """The server's version.

        Raises:
            ValueError: see `call`.
        """
        return str(self.call("get_server_version"))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _explain_errors(self, method: str) -> Iterator[None]:
        """Replace every error in the block with `Unavailable`, which says what to do."""
        try:
            yield
        except Exception as error:  # gRPC's and pymilvus's exceptions have no common base class
            raise Unavailable(self._message(method, error)) from error

    def _message(self, method: str, error: Exception) -> str:
        reason = _reason(error)
        text = f"{reason} {type(error).__name__}".lower()
        if any(sign in text for sign in ("auth", "permission", "privilege")):
            return (
                f"{self.address}: the server refused {method} ({reason[:160]}); set the "
                f"environment variable {TOKEN_VARIABLE} to user:password, or to an API key with "
                "this permission"
            )
        if method == "connect" or any(sign in text for sign in UNREACHABLE_SIGNS):
            return (
                f"{self.address}: no Milvus server answers at {self.address.server} within "
                f"{self.timeout:g} s ({reason[:160]}); check the host, the port and that the "
                f"server is running, and {TOKEN_VARIABLE} if it requires a token"
            )
        return f"{self.address}: Milvus refused {method}: {reason[:300]}"


def _reason(error: Exception) -> str:
    """An error's message in one line; gRPC and pymilvus store it in different attributes."""
    details = getattr(error, "details", None)
    if callable(details):
        code = getattr(error, "code", lambda: "")()
        return f"{getattr(code, 'name', code)}: {details()}"
    return first_line(Exception(getattr(error, "message", "") or error))
