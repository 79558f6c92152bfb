"""Limits the number of connections, and the time in which a client must send a request's head."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Maximum time to receive a request's head, in seconds."""
MAX_CONNECTIONS = 512
"""Maximum number of connections. It is below the usual limit of 1024 open files per process."""


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, with limits on connections and on the time to receive a head.

    A head is a request's first line and headers. uvicorn itself would wait forever for a head.
    """

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Accept a connection, or close it at once if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after a connection."""
        self._cancel_head_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Start to wait for the head of the next request."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        self._cancel_head_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._abort_without_head)

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _abort_without_head(self) -> None:
        # `cycle` is uvicorn's object for the latest request. If that request is running, its head
        # has arrived, and `Gate` limits its time.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()
