"""What every request passes first, before its body is read: key, scope, rate, load."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import limits
import limits.storage
import limits.strategies
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from margrave.serving.keys import KeyFile
from margrave.serving.settings import ServiceSettings

RETRY_SECONDS = 1
MOST_FRAMES = 5
"""Of an unexpected error, in the log."""
HEADERS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
"""Of every answer: faces and names are kept nowhere and are taken for nothing else."""
Refusal = tuple[int, str, str, int | None]
"""Status, reason, message, and after how many seconds to try again."""


class Metrics:
    """What Prometheus is told: counts and times, never who or whom.

    Attributes:
        registry: of this service alone.
        requests, seconds: by route and status.
        busy: requests that are worked on or wait.
        batches: faces in each batch of embeddings.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "margrave_requests", "Answered requests", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "margrave_request_seconds", "Time to answer", ["route"], registry=self.registry
        )
        self.busy = Gauge("margrave_busy", "Requests in work", registry=self.registry)
        self.batches = Histogram(
            "margrave_batch_faces",
            "Faces in a batch",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )


class Gate:
    """Refuses before anything is read: 401, 403, 413, 429 and 503; logs a line for each answer.

    A request that is let in has so many seconds, its body included; then it is ended with 408. What
    goes wrong unexpectedly is answered with 500 and logged without names.

    Args:
        app: what is behind the gate.
        keys: who may come in.
        settings: rate and load.
        metrics: what is counted.
        scope_of: the scope that a method and a path need; None where anybody may, "" where any key.
        write: takes lines of the log; standard error by default.
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
        self._most, self._write = settings.most_waiting, write
        self._most_body = settings.most_body
        self._rate = limits.parse(settings.rate)
        self._limiter = limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())
        self._busy, self._seconds = 0, settings.request_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        number = uuid.uuid4().hex[:12]
        state = scope.setdefault("state", {})
        state["request"], state["key"] = number, "-"
        status, is_answered = 500, False

        async def noting(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
                headers = [
                    *message.get("headers", []),
                    *HEADERS,
                    (b"x-request-id", number.encode()),
                ]
                message = {**message, "headers": headers}
            await send(message)

        needed = self._scope_of(scope["method"], scope["path"])
        try:
            refusal = self._refusal(scope, needed) or self._too_large(scope)
            if refusal is not None:
                await self._refuse(noting, *refusal)
            elif needed is None:
                await self.app(scope, receive, noting)
            else:
                await self._counted(scope, receive, noting)
        except Exception as error:
            state["fault"] = described_error(error)
            if not is_answered:
                await self._refuse(noting, 500, "internal", internal_error(number), None)
        finally:
            self._log(scope, number, status, time.perf_counter() - started)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._busy >= self._most:
            await self._refuse(
                send,
                503,
                "overloaded",
                f"{self._most} requests are in work; try again in {RETRY_SECONDS} s",
                RETRY_SECONDS,
            )
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        self._busy += 1
        self._metrics.busy.set(self._busy)
        deadline = asyncio.timeout(self._seconds)
        try:
            async with deadline:
                await self.app(scope, receive, noting)
        except TimeoutError:
            if started or not deadline.expired():
                raise
            message = f"the request took longer than {self._seconds:g} s; send less at a time"
            await self._refuse(send, 408, "too_slow", message, None)
        finally:
            self._busy -= 1
            self._metrics.busy.set(self._busy)

    def _too_large(self, scope: Scope) -> Refusal | None:
        # What comes in chunks is counted while it is read.
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._most_body:
            return 413, "too_large", f"a request has at most {self._most_body} bytes", None
        return None

    def _refusal(self, scope: Scope, needed: str | None) -> Refusal | None:
        if needed is None:
            return None
        try:
            key = self._keys.allowed(_token(scope))
        except (OSError, ValueError) as error:
            scope["state"]["fault"] = described_error(error)
            message = "the service cannot read its file of API keys; its operator must repair it"
            return 503, "no_keys", message, RETRY_SECONDS
        if key is None:
            return 401, "no_key", "give a valid API key: Authorization: Bearer mgv_…", None
        scope["state"]["key"] = key.id
        if needed and needed not in key.scopes:
            return 403, "no_scope", f"this key lacks the scope {needed!r}", None
        if not self._limiter.hit(self._rate, key.id):
            reset, _ = self._limiter.get_window_stats(self._rate, key.id)
            wait = max(1, int(reset - time.time()) + 1)
            return 429, "too_many", f"more than {self._rate}; try again in {wait} s", wait
        return None

    async def _refuse(
        self, send: Send, status: int, reason: str, message: str, wait: int | None
    ) -> None:
        body = json.dumps({"error": message, "reason": reason}).encode()
        # The body of the request is not read.
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        if wait is not None:
            headers.append((b"retry-after", b"%d" % wait))
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _log(self, scope: Scope, number: str, status: int, seconds: float) -> None:
        # The route's pattern and not the path, which holds names.
        route: Any = scope.get("route")
        path = getattr(route, "path", "-")
        self._metrics.requests.labels(path, status).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": number,
            "method": scope["method"][:16] if scope["method"].isalpha() else "-",
            "route": path,
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "key": scope["state"]["key"],
            **scope["state"].get("fault", {}),
        }
        self._write(json.dumps(line) + "\n")


def internal_error(number: str) -> str:
    """What is answered where the service failed."""
    return f"the service failed; its log has more at request {number}"


def described_error(error: Exception) -> dict[str, Any]:
    """What the log says of an error: its kind and place, not its message, which may hold names."""
    frames = traceback.extract_tb(error.__traceback__)[-MOST_FRAMES:]
    places = [f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in frames]
    return {"error": type(error).__name__, "at": places}


def _token(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if kind.lower() == "bearer" else ""
    return ""
