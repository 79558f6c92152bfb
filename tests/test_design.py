"""The drawing in docs/design.md is the table that import-linter enforces."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")


def _enforced() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["importlinter"]["contracts"][0]["layers"]


def test_the_drawing_has_the_enforced_layers() -> None:
    block = re.search(r"```\n(cli >.*?)```", DESIGN, re.DOTALL)
    assert block is not None
    drawn = [" ".join(layer.split()) for layer in block[1].split(">")]
    assert drawn == _enforced()


def test_every_room_is_described() -> None:
    listed = re.findall(r"^  (\w+)(?:/|\.py) ", DESIGN, re.MULTILINE)
    rooms = [room.strip() for layer in _enforced() for room in layer.split("|")]
    assert sorted(listed) == sorted(rooms)
