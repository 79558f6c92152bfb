"""Turns: a limited number at a time, key after key, whatever is canceled."""

from __future__ import annotations

import asyncio

import pytest

from margrave.serving.turns import Turns


def test_keys_take_turns() -> None:
    order: list[str] = []

    async def work(key: str) -> None:
        order.append(key)
        await asyncio.sleep(0)

    async def main() -> None:
        turns = Turns(1)
        keys = ["a"] * 5 + ["b", "b", "c"]
        await asyncio.gather(*(turns.run(key, lambda key=key: work(key)) for key in keys))

    asyncio.run(main())
    assert "".join(order) == "aabcabaa"


def test_no_more_than_allowed_run_at_a_time() -> None:
    running = most = 0

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    async def main() -> None:
        turns = Turns(3)
        await asyncio.gather(*(turns.run(str(number % 4), work) for number in range(40)))

    asyncio.run(main())
    assert (running, most) == (0, 3)


def test_what_is_canceled_while_it_waits_never_starts_and_loses_no_turn() -> None:
    started: list[int] = []

    async def work(number: int) -> None:
        started.append(number)
        await asyncio.sleep(0.01)

    async def main() -> None:
        turns = Turns(1)
        tasks = [
            asyncio.create_task(turns.run("a", lambda number=number: work(number)))
            for number in range(6)
        ]
        await asyncio.sleep(0.001)
        for number in (1, 2, 4):
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Canceled just when its turn has come.
        first = asyncio.create_task(turns.run("a", lambda: work(6)))
        second = asyncio.create_task(turns.run("a", lambda: work(7)))
        await first
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asyncio.wait_for(turns.run("b", lambda: work(8)), 1)

    asyncio.run(main())
    assert [number for number in started if number != 7] == [0, 3, 5, 6, 8]


def test_what_runs_keeps_its_turn_although_nobody_waits() -> None:
    async def main() -> None:
        turns, may_end = Turns(1), asyncio.Event()
        abandoned = asyncio.create_task(turns.run("a", may_end.wait))
        await asyncio.sleep(0.001)
        abandoned.cancel()
        following = asyncio.create_task(turns.run("b", lambda: asyncio.sleep(0, "done")))
        await asyncio.sleep(0.01)
        assert not following.done()
        may_end.set()
        assert await asyncio.wait_for(following, 1) == "done"

    asyncio.run(main())


def test_errors_reach_the_caller_and_free_the_turn() -> None:
    async def fail() -> None:
        raise ValueError("no face")

    async def main() -> None:
        turns = Turns(1)
        for _ in range(3):
            with pytest.raises(ValueError, match="no face"):
                await turns.run("a", fail)

    asyncio.run(main())
