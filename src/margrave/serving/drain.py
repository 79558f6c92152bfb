"""Reads a request to its end after an early error, so that the client receives the response."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_SECONDS = 10.0
"""Default maximum time to read the rest of a request, in seconds."""
MAX_LINGERING = 256
"""Default maximum number of connections from which the rest of a request is read at a time."""


class DrainAfterError:
    """ASGI middleware that discards the rest of a request's body after an early error response.

    If the server closes a connection that has unread data, the connection is reset, and the
    client's operating system drops the response. The server closes the connection after the last
    part of the response. So an empty last part is sent after the request's body has been read.

    Args:
        app: the wrapped application.
        max_bytes: maximum number of bytes to read and discard; beyond this number, the connection
            is closed anyway.
        max_seconds: maximum time to read, in seconds; after this time, the connection is closed
            anyway.
        max_lingering: maximum number of connections that are read at a time; further connections
            are closed without reading.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_seconds: float = LINGER_SECONDS,
        max_lingering: int = MAX_LINGERING,
    ) -> None:
        self.app = app
        self._max_bytes, self._max_seconds = max_bytes, max_seconds
        self._max_lingering = max_lingering
        self._lingering_count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A client that expects 100-continue sends no body until the server asks for it.
        body_remains = b"100-continue" not in dict(scope["headers"]).get(b"expect", b"").lower()
        is_error = is_end_held = False

        async def tracking_receive() -> Message:
            nonlocal body_remains
            message = await receive()
            body_remains = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def holding_send(message: Message) -> None:
            nonlocal is_error, is_end_held
            if message["type"] == "http.response.start":
                is_error = message["status"] >= 400
            elif is_error and body_remains and not message.get("more_body", False):
                # Declare that more of the response follows, so that the server does not close the
                # connection yet.
                is_end_held = self._lingering_count < self._max_lingering
                message = {**message, "more_body": is_end_held}
            await send(message)

        await self.app(scope, tracking_receive, holding_send)
        if is_end_held:
            self._lingering_count += 1
            try:
                await self._discard_body(receive)
            finally:
                self._lingering_count -= 1
            await send({"type": "http.response.body", "body": b""})

    async def _discard_body(self, receive: Receive) -> None:
        remaining_bytes = self._max_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(self._max_seconds):
                while remaining_bytes > 0:
                    message = await receive()
                    remaining_bytes -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        return
