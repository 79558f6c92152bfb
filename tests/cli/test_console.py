"""Names of files are shown, not obeyed."""

from __future__ import annotations

import io
import os
from pathlib import Path

from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from margrave import backbones
from margrave.cli import app
from margrave.cli.console import Console
from margrave.models import ModelCard, OperatingPoint, save_model
from margrave.synthetic import SyntheticFaces

NETWORK = {
    "kind": "iresnet", "block_counts": [1, 1, 1, 1], "channels": [8, 8, 8, 8],
    "embedding_size": 8, "image_size": 32,
}  # fmt: skip


def shown(*objects: object, **settings: bool) -> str:
    file = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", newline="")
    Console(
        file=file, width=200, color_system="truecolor", force_terminal=True, highlight=False
    ).print(*objects, **settings)
    file.seek(0)
    return file.read()


def test_control_characters_are_spelled_out() -> None:
    name = "a\x1b]0;owned\x07\x1b[2J\r\x9b\u202eb" + os.fsdecode(b"\xff")
    spelled = r"a\x1b]0;owned\x1b[2J\x9b\u202eb\xff"
    assert shown(name, markup=False) == f"{spelled}\n"
    assert shown(Text(name, style="red")) == f"\x1b[31m{spelled}\x1b[0m\n"
    table = Table(name)
    table.add_row("one\ntwo")
    assert "\x1b]" not in shown(table)
    assert "two" in shown(table)


def test_what_a_card_and_a_folder_say_is_no_markup(tmp_path: Path) -> None:
    point = OperatingPoint(far=0.1, threshold=0.5, measured_on="[/b] faces [link=http://x]y[/link]")
    card = ModelCard(backbone=NETWORK, image_size=32, operating_points=(point,))
    model = tmp_path / "model.safetensors"
    save_model(model, backbones.create(NETWORK).state_dict(), card)
    faces = tmp_path / "[bold]faces"
    SyntheticFaces(num_identities=4, images_per_identity=12, image_size=32).write(faces)
    images = sorted(map(str, faces.rglob("*.*g")))[:2]
    result = CliRunner().invoke(
        app, ["verify", "-m", str(model), "--aligned", "--unchecked", *images]
    )
    assert result.exit_code in (0, 3)
    assert "[/b] faces [link=http://x]y[/link]" in " ".join(result.output.split())
    result = CliRunner().invoke(
        app, ["evaluate", "pairs", str(model), "--images", str(faces), "--number", "20"]
    )
    assert result.exit_code == 0, result.output
    assert "[bold]faces" in result.output
