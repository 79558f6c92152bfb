"""What a command needs no torch for, it does not wait for torch for."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import typer

from margrave.cli import app
from margrave.losses import LOSSES, create
from margrave.recipes import recipe_names

GROUP = typer.main.get_group(app)
# The protocols themselves, which evaluate lists, need torch.
COMMANDS = [[name] for name in GROUP.commands if name != "evaluate"]

RUN_ALL = """
import contextlib, io, json, sys
from margrave.cli import main

results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["margrave", *arguments]
    printed, status = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as exit:
            status = exit.code or 0
    results.append([arguments, status, printed.getvalue(), "torch" in sys.modules])
print(json.dumps(results))
"""

LIST_LOSSES = """
import inspect, json, sys
from margrave.losses import LOSSES, create

losses = {name: create({"kind": name}) for name in LOSSES}
print(json.dumps({
    "losses": {
        name: [inspect.getdoc(type(loss)), repr(loss.settings()), list(loss.needs)]
        for name, loss in losses.items()
    },
    "torch": "torch" in sys.modules,
}))
"""


def in_new_process(code: str, *arguments: str) -> object:
    """The JSON that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def without_torch(*commands: list[str], status: int = 0) -> list[str]:
    """What the commands print in a process in which torch must stay unimported."""
    printed = []
    for arguments, ended, text, torch_imported in in_new_process(RUN_ALL, json.dumps(commands)):  # pyright: ignore[reportGeneralTypeIssues]
        assert ended == status, text
        assert not torch_imported, f"margrave {' '.join(arguments)} imports torch"
        printed.append(text)
    return printed


def test_help_and_version() -> None:
    assert len(COMMANDS) > 12
    helps = without_torch(["--version"], ["--help"], *([*each, "--help"] for each in COMMANDS))
    assert all("Usage:" in text for text in helps[1:])


def test_recipes() -> None:
    listed, *texts = without_torch(["recipes"], *(["recipes", name] for name in recipe_names()))
    assert all(name in listed for name in recipe_names())
    assert all(texts)


def test_losses() -> None:
    listed, *texts = without_torch(["losses"], *(["losses", name] for name in LOSSES))
    for name, text in zip(LOSSES, texts, strict=True):
        assert name in listed
        assert all(setting in text for setting in create({"kind": name}).settings())


def test_a_mistyped_name() -> None:
    (loss, recipe) = without_torch(["losses", "adafase"], ["recipes", "demp"], status=1)
    assert "did you mean 'adaface'" in loss
    assert "did you mean 'demo'" in recipe


def test_one_name_at_a_time() -> None:
    (printed,) = without_torch(["losses", "adaface", "arcface"], status=2)
    assert "unexpected extra arguments (arcface)" in printed


def test_losses_are_the_same_without_torch() -> None:
    listed = in_new_process(LIST_LOSSES)
    losses = {name: create({"kind": name}) for name in LOSSES}
    expected = {
        name: [inspect.getdoc(type(loss)), repr(loss.settings()), list(loss.needs)]
        for name, loss in losses.items()
    }
    assert listed == {"losses": expected, "torch": False}
