"""Limits connections: their number, and the times in which a client must send and receive."""

from __future__ import annotations

import asyncio
import json
import socket
import weakref
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Maximum time for a TLS handshake, and then to receive a request's head, in seconds."""
SEND_SECONDS = 30.0
"""Maximum time in which a client receives nothing of a response, in seconds."""
MAX_CONNECTIONS = 512
"""Maximum number of connections. It is below the usual limit of 1024 open files per process."""
BACKLOG = 128
"""Maximum number of connections that wait to be accepted."""


class BoundedListener(socket.socket):
    """A listening socket that closes connections at once while `MAX_CONNECTIONS` are open.

    They are counted here, because a protocol does not know of a connection during its handshake.
    """

    _accepted: weakref.WeakSet[socket.socket]

    @classmethod
    def listen_at(cls, host: str, port: int) -> BoundedListener:
        """Listen at an address.

        Raises:
            OSError: the address is not this machine's, or the port is in use.
        """
        family, kind, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        created = socket.create_server((host, port), family=family, backlog=BACKLOG)
        listener = cls(family, kind, fileno=created.detach())
        listener._accepted = weakref.WeakSet()
        return listener

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            BlockingIOError: no connection is waiting.
        """
        while True:
            connection, address = super().accept()
            open_count = sum(accepted.fileno() != -1 for accepted in self._accepted)
            if open_count < MAX_CONNECTIONS:
                self._accepted.add(connection)
                return connection, address
            connection.close()


class ServiceLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers limit the time of a TLS handshake."""

    async def create_server(self, *arguments: Any, **options: Any) -> Any:
        """Create a server, see `asyncio.loop.create_server`."""
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEAD_SECONDS
        return await super().create_server(*arguments, **options)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, with limits on the times to send a head and to receive.

    A head is a request's first line and headers. uvicorn itself would wait forever for a head, and
    for a client that does not read its response.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the head of the first request."""
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after a connection."""
        _cancel(self._head_timer)
        _cancel(self._send_timer)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start to wait for the head of the next request, or for the end of the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_send_timer()
        else:
            self._start_head_timer()

    def pause_writing(self) -> None:
        """Wait until the client has received some of the response."""
        super().pause_writing()
        self._start_send_timer()

    def resume_writing(self) -> None:
        """Go on with the response."""
        _cancel(self._send_timer)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request, in the form of all errors."""
        body = json.dumps({"error": msg, "reason": "malformed"}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._start_send_timer()
        self.transport.close()

    def _start_head_timer(self) -> None:
        _cancel(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort_without_head)

    def _start_send_timer(self) -> None:
        _cancel(self._send_timer)
        # Closing would wait until the client has received everything; aborting does not.
        self._send_timer = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def _abort_without_head(self) -> None:
        # `cycle` is uvicorn's object for the latest request. If that request is running, its head
        # has arrived, and `Gate` limits its time.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
