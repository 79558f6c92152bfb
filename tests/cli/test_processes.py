"""The same command once more, for the processes that share its work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from margrave.cli import processes

app = typer.Typer()
group = typer.Typer()
app.add_typer(group, name="group")
given: list[object] = []


@group.command("a-command")
def command(
    context: typer.Context,
    first: Path,
    others: Annotated[list[str] | None, typer.Argument()] = None,
    plain: Annotated[bool, typer.Option()] = True,
    maybe: Annotated[bool | None, typer.Option()] = None,
    number: Annotated[float | None, typer.Option("--number", "-n")] = None,
    several: Annotated[list[str] | None, typer.Option("--set")] = None,
    devices: int = 1,
) -> None:
    if processes.relaunch(context, devices):
        return
    given.append((first, others, plain, maybe, number, several))


@pytest.mark.parametrize(
    "words",
    [
        ["here"],
        ["here", "--no-plain", "-n", "1e-9", "--set", "a=b", "--set", "c=-d"],
        ["--maybe", "--", "here", "--several", "x y"],
        ["--no-maybe", "--number", "-0.5", "here", "it"],
    ],
)
def test_arguments_survive_being_given_again(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, list[str]]] = []
    monkeypatch.setattr(processes, "launch", lambda count, words: started.append((count, words)))
    given.clear()
    assert CliRunner().invoke(app, ["group", "a-command", *words]).exit_code == 0
    shared = CliRunner().invoke(app, ["group", "a-command", "--devices", "3", *words])
    assert shared.exit_code == 0, shared.output
    assert len(given) == 1 and len(started) == 1
    assert started[0][0] == 3 and started[0][1][1:3] == ["-m", "margrave"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert CliRunner().invoke(app, started[0][1][3:]).exit_code == 0
    assert len(started) == 1
    assert given[1] == given[0]


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.local_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert processes.local_device("cuda") == "cuda:2"
    assert processes.local_device("cpu") == "cpu"
