"""Checks every request before its body is read: API key, scope, size, rate and load."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limits
import limits.storage
import limits.strategies
import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from margrave.serving.keys import KeyFile
from margrave.serving.request_checks import (
    NOT_FOUND,
    Rejection,
    check_address,
    check_media_type,
    check_size,
)
from margrave.serving.settings import ServiceSettings

RETRY_SECONDS = 1
"""Seconds after which a client may retry if the service is overloaded or cannot read its keys."""
MAX_LOGGED_FRAMES = 5
"""Maximum number of stack frames in the log of an error; the innermost ones are logged."""
HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
"""Headers of every response: clients must neither cache it nor guess another content type."""
UNKNOWN = "unknown"
"""The needed scope of an address that the service does not have; no key has this scope."""


class Metrics:
    """Prometheus metrics: counts and times, without names or keys.

    Attributes:
        registry: contains the metrics below.
        requests: number of requests by route and status.
        seconds: response time by route.
        busy: number of concurrent requests, running or waiting.
        batches: number of faces in each batch of embeddings.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = prometheus_client.Counter(
            "margrave_requests", "Answered requests", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "margrave_request_seconds",
            "Response time in seconds",
            ["route"],
            registry=self.registry,
        )
        self.busy = Gauge("margrave_busy", "Requests running or waiting", registry=self.registry)
        self.batches = Histogram(
            "margrave_batch_faces",
            "Faces in a batch",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )


class Gate:
    """ASGI middleware that rejects requests before their body is read, and logs every response.

    Rejected requests get 400, 401, 403, 404, 413, 415, 429 or 503. An accepted request gets 408 if
    it takes longer than ``request_seconds``, including receiving its body, and 503 if the service
    stops before it ends. After an unexpected error, the client gets 500, and the error is logged
    without names.

    In this module, ``scope`` is ASGI's description of a request; ``needed_scope`` is the scope that
    the request's API key needs.

    Args:
        app: the wrapped application.
        keys: the valid API keys.
        settings: the service's settings, including the limits.
        metrics: the metrics, which every request updates.
        scope_of: (method, path) -> the scope that a request's API key needs: None if the request
            needs no key, empty if any key will do, `UNKNOWN` if the service has no such path.
        write: called with each line of the log; by default writes to standard error.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyFile,
        settings: ServiceSettings,
        metrics: Metrics,
        scope_of: Callable[[str, str], str | None],
        write: Callable[[str], object] = sys.stderr.write,
    ) -> None:
        self.app, self._keys, self._metrics, self._scope_of = app, keys, metrics, scope_of
        self._max_concurrent, self._write = settings.max_concurrent, write
        # A quarter is left for other keys, so that one key cannot keep all others out.
        self._max_concurrent_per_key = settings.max_concurrent - settings.max_concurrent // 4
        self._max_request_bytes = settings.max_request_bytes
        self._rate = limits.parse(settings.rate)
        self._limiter = limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())
        self._busy_of_key: Counter[str] = Counter()
        self._request_seconds = settings.request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start_time = time.perf_counter()
        request_id = uuid.uuid4().hex[:12]
        state = scope.setdefault("state", {})
        state["request_id"], state["key_id"] = request_id, "-"
        status, has_response_started = 500, False

        async def tracking_send(message: Message) -> None:
            nonlocal status, has_response_started
            if message["type"] == "http.response.start":
                status, has_response_started = message["status"], True
                headers = [
                    *message.get("headers", []),
                    *HEADERS,
                    (b"x-request-id", request_id.encode()),
                ]
                message = {**message, "headers": headers}
            await send(message)

        # Files are small and sent whole; ranges would add ways to fail.
        ranges = (b"range", b"if-range")
        scope["headers"] = [header for header in scope["headers"] if header[0] not in ranges]
        needed_scope = self._scope_of(scope["method"], scope["path"])
        try:
            rejection = (
                self._check_key(scope, needed_scope)
                or check_address(scope)
                or check_size(scope, self._max_request_bytes)
                # Requests that need a scope are those that routes handle; others get 404 or 405.
                or (check_media_type(scope) if needed_scope else None)
            )
            if rejection is not None:
                await self._reject(tracking_send, rejection)
            elif needed_scope is None:
                await self.app(scope, receive, tracking_send)
            else:
                await self._run_limited(scope, receive, tracking_send)
        except asyncio.CancelledError:
            # The service stops and does not wait any longer. This was the request's last step, so
            # the cancellation need not be passed on.
            if not has_response_started:
                message = "the service is stopping; try again later"
                await self._reject(tracking_send, Rejection(503, "later", message, RETRY_SECONDS))
        except Exception as error:
            state["logged_error"] = log_fields_of_error(error)
            if not has_response_started:
                rejection = Rejection(500, "internal", internal_error(request_id))
                await self._reject(tracking_send, rejection)
        finally:
            self._log(scope, request_id, status, time.perf_counter() - start_time)

    async def _run_limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a request with a time limit, or reject it if too many are running."""
        key_id = scope["state"]["key_id"]
        running, running_for_key = self._busy_of_key.total(), self._busy_of_key[key_id]
        if running >= self._max_concurrent or running_for_key >= self._max_concurrent_per_key:
            message = (
                f"{running} requests are running, {running_for_key} of them for this key; try "
                f"again in {RETRY_SECONDS} s"
            )
            await self._reject(send, Rejection(503, "overloaded", message, RETRY_SECONDS))
            return
        has_response_started = False

        async def tracking_send(message: Message) -> None:
            nonlocal has_response_started
            has_response_started = True
            await send(message)

        self._busy_of_key[key_id] += 1
        self._metrics.busy.set(running + 1)
        deadline = asyncio.timeout(self._request_seconds)
        try:
            async with deadline:
                await self.app(scope, receive, tracking_send)
        except TimeoutError:
            if has_response_started or not deadline.expired():
                raise
            message = (
                f"the request took longer than {self._request_seconds:g} s; "
                "send fewer or smaller images"
            )
            await self._reject(send, Rejection(408, "too_slow", message))
        finally:
            self._busy_of_key[key_id] -= 1
            if not self._busy_of_key[key_id]:
                del self._busy_of_key[key_id]
            self._metrics.busy.set(self._busy_of_key.total())

    def _check_key(self, scope: Scope, needed_scope: str | None) -> Rejection | None:
        """Check the API key, its scope and its request rate."""
        if needed_scope is None:
            return None
        try:
            key = self._keys.key_of_token(_bearer_token(scope))
        except (OSError, ValueError) as error:
            scope["state"]["logged_error"] = log_fields_of_error(error)
            message = "the service cannot read its API keys; the operator must repair the key file"
            return Rejection(503, "no_keys", message, RETRY_SECONDS)
        if key is None:
            return Rejection(401, "no_key", "send a valid API key: Authorization: Bearer mgv_…")
        scope["state"]["key_id"] = key.id
        if not self._limiter.hit(self._rate, key.id):
            reset_time, _ = self._limiter.get_window_stats(self._rate, key.id)
            retry_seconds = max(1, int(reset_time - time.time()) + 1)
            message = f"this key exceeded its rate of {self._rate}; try again in {retry_seconds} s"
            return Rejection(429, "too_many", message, retry_seconds)
        if needed_scope == UNKNOWN:
            return NOT_FOUND
        if needed_scope and needed_scope not in key.scopes:
            message = f"this key lacks the scope {needed_scope!r}; use a key that has it"
            return Rejection(403, "no_scope", message)
        return None

    async def _reject(self, send: Send, rejection: Rejection) -> None:
        """Send an error response."""
        status, reason, message, retry_seconds = rejection
        body = json.dumps({"error": message, "reason": reason}).encode()
        # Close the connection, because the request's body has not been read.
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if retry_seconds is not None:
            headers.append((b"retry-after", b"%d" % retry_seconds))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _log(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        # Log the route's pattern, because the path itself may contain a person's name.
        route: Any = scope.get("route")
        path = getattr(route, "path", "-")
        self._metrics.requests.labels(path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": request_id,
            # The client may send any text as the method; do not log a long or odd one.
            "method": scope["method"][:16] if scope["method"].isalpha() else "-",
            "route": path,
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "key": scope["state"]["key_id"],
            **scope["state"].get("logged_error", {}),
        }
        self._write(json.dumps(line) + "\n")


def internal_error(request_id: str) -> str:
    """The message that a client gets after an unexpected error."""
    return f"the service failed; see request {request_id} in the service's log"


def log_fields_of_error(error: Exception) -> dict[str, Any]:
    """An error's type and stack for the log, without its message, which may contain names."""
    frames = traceback.extract_tb(error.__traceback__)[-MAX_LOGGED_FRAMES:]
    lines = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": type(error).__name__, "at": lines}


def _bearer_token(scope: Scope) -> str:
    """The bearer token of a request, or an empty string."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""
