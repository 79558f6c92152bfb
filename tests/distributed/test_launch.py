"""Which of several processes' failures the launcher tells."""

from __future__ import annotations

import signal
from types import SimpleNamespace

from margrave.distributed.launch import _root_cause


def failure(code: int, timestamp: int, message: str | None = None) -> SimpleNamespace:
    output = "" if message is None else {"message": message}
    return SimpleNamespace(exitcode=code, timestamp=timestamp, message=output)


def output(*failures: SimpleNamespace) -> str:
    return _root_cause(SimpleNamespace(failures=dict(enumerate(failures))), len(failures))


LOST = "LostContactError: process 1 of 2 lost contact with another process: Connection closed"


def test_what_was_killed_from_outside_comes_first() -> None:
    killed = failure(-signal.SIGKILL, 100)
    assert "process 2 of 2 was killed (SIGKILL)" in output(failure(1, 101, LOST), killed)


def test_what_the_launcher_had_to_kill_is_no_cause() -> None:
    named = failure(1, 100, "RankError: process 2 of 2 has not answered for 60 s")
    killed = failure(-signal.SIGKILL, 130)
    assert output(named, killed) == "process 2 of 2 has not answered for 60 s"


def test_lost_contact_is_a_consequence() -> None:
    cause = failure(1, 100, "ValueError: a training step left parameters without a gradient")
    assert output(failure(1, 100, LOST), cause).startswith("a training step left parameters")
    assert output(failure(1, 100, LOST), failure(-signal.SIGTERM, 101)).startswith("process 1 of 2")


def test_a_process_that_aborts_after_its_error_is_not_the_cause() -> None:
    aborted = failure(-signal.SIGABRT, 100, "ValueError: a training step left parameters")
    assert output(aborted, failure(1, 101, LOST)) == "a training step left parameters"
    lost = failure(-signal.SIGABRT, 100, LOST)
    cause = failure(1, 101, "ValueError: a training step left parameters")
    assert output(lost, cause) == "a training step left parameters"
