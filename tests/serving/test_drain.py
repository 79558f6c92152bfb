"""Refusals reach clients that are still sending, within bounds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from margrave.serving.drain import DrainAfterError


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    del scope, receive
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


class Client:
    """Sends a body in pieces, slowly if told so, and notes what is answered when."""

    def __init__(self, pieces: int, seconds: float = 0.0, size: int = 1000) -> None:
        self.left, self.seconds, self.size = pieces, seconds, size
        self.answers: list[tuple[int, bytes, bool]] = []

    async def receive(self) -> Any:
        await asyncio.sleep(self.seconds)
        self.left -= 1
        return {"type": "http.request", "body": bytes(self.size), "more_body": self.left > 0}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            ends = not message.get("more_body", False)
            self.answers.append((self.left, message["body"], ends))

    def run(self, app: DrainAfterError, **headers: str) -> list[tuple[int, bytes, bool]]:
        given = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "headers": given}
        asyncio.run(app(scope, self.receive, self.send))  # pyright: ignore[reportArgumentType]
        return self.answers


def test_the_answer_ends_when_the_body_has() -> None:
    assert Client(50).run(DrainAfterError(refuse, 10**6)) == [(50, b"no", False), (0, b"", True)]


def test_the_answer_ends_when_the_bounds_are_reached() -> None:
    assert Client(50).run(DrainAfterError(refuse, 10_000)) == [(50, b"no", False), (40, b"", True)]
    started = time.monotonic()
    answers = Client(50, 0.02, 1).run(DrainAfterError(refuse, 10**6, max_seconds=0.1))
    assert time.monotonic() - started < 0.5 and answers[-1][0] > 40 and answers[-1][2]


@pytest.mark.parametrize("headers", [{"expect": "100-continue"}])
def test_a_client_that_waits_to_be_asked_is_not_waited_for(headers: dict[str, str]) -> None:
    assert Client(50).run(DrainAfterError(refuse, 10**6), **headers) == [(50, b"no", True)]


def test_so_many_are_read_on_at_a_time() -> None:
    app = DrainAfterError(refuse, 10**6, max_lingering=0)
    assert Client(50).run(app) == [(50, b"no", True)]


def test_a_body_that_was_read_is_not_waited_for() -> None:
    async def read_all(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await refuse(scope, receive, send)

    assert Client(5).run(DrainAfterError(read_all, 10**6)) == [(0, b"no", True)]
