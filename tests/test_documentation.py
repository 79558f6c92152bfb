"""Documentation that cannot rot: its code runs, its losses are the registered ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from margrave.losses import LOSSES, create

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    scope: dict = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("kind", list(LOSSES))
def test_every_loss_is_documented_with_its_settings(kind: str) -> None:
    text = (ROOT / "docs" / "losses.md").read_text()
    assert f"[`{kind}`](#{kind})" in text
    section = text.split(f"\n## {kind}\n")[1].split("\n## ")[0]
    assert "Source:" in section
    for name, value in create({"kind": kind}).settings().items():
        if name == "straight_through":
            continue
        assert f"`{name}`" in section
        if isinstance(value, int | float | str):
            assert f"`{name}` {value}" in section


def test_commands_of_the_documentation_exist() -> None:
    from margrave.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for name in re.findall(r"^margrave ([a-z]+)", block, flags=re.MULTILINE):
                assert name in known, f"{page.name}: margrave {name}"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path) -> None:
    subprocess.run([sys.executable, str(example)], check=True, cwd=example.parent)


def test_the_loss_of_ones_own_is_short() -> None:
    assert len((ROOT / "examples" / "my_loss.py").read_text().splitlines()) <= 30
