"""An importer is one class: registered in its folder, or named from outside."""

from __future__ import annotations

import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from margrave import backbones
from margrave.cli import app
from margrave.models import importers, open_model
from margrave.models.importers import LAYOUTS, Importer, convert

ROOT = Path(__file__).parents[3]
NETWORK = {
    "kind": "iresnet",
    "block_counts": [1, 2, 1, 1],
    "channels": [8, 8, 16, 16],
    "stem_channels": 8,
    "embedding_size": 4,
    "image_size": 32,
}
THEIRS = {"conv1.": "stem.conv.", "bn1.": "stem.norm.", "prelu.": "stem.act."}


def margrave(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return " ".join(f"{result.output} {result.exception}".split())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, and a checkpoint that its made-up project would have written."""
    torch.manual_seed(0)
    state = backbones.create(NETWORK).state_dict()
    theirs = {}
    for key, tensor in state.items():
        name = re.sub(r"^layer(\d)", lambda stage: f"stages.{int(stage[1]) - 1}", key)
        prefix = next((prefix for prefix in THEIRS if name.startswith(prefix)), "")
        theirs[THEIRS.get(prefix, "") + name.removeprefix(prefix)] = tensor
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
    torch.save(state, tmp_path / "state.pth")
    shutil.copy(ROOT / "examples" / "my_importer.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_importer_from_outside(folder: Path) -> None:
    assert len((folder / "my_importer.py").read_text().splitlines()) <= 40
    layout = "my_importer:StagesNet"
    output = margrave("import", "theirs.pth", "ours.safetensors", "--layout", layout)
    assert (
        f"{layout} -> ours.safetensors" in output
        and "the first convolution was changed to take RGB" in output
    )
    model, expected = open_model("ours.safetensors"), torch.load("state.pth")
    expected["conv1.weight"] = expected["conv1.weight"].flip(1)
    assert model.state.keys() == expected.keys()
    assert all(torch.equal(model.state[key], expected[key]) for key in expected)
    assert dict(model.card.backbone) == NETWORK and (model.card.mean, model.card.std) == (0, 1)
    assert f"of layout {layout}" in margrave("doctor", "theirs.pth", "--layout", layout, code=1)


def test_without_it_the_layout_is_unknown(folder: Path) -> None:
    output = margrave("import", "theirs.pth", "ours.safetensors", code=1)
    assert "unknown layout; known layouts: adaface_ir, curricularface_ir" in output


def test_a_layout_may_be_named(folder: Path) -> None:
    words = ("import", "state.pth", "ours.safetensors", "--layout")
    assert "did you mean 'magface_iresnet'" in margrave(*words, "magface_iresnt", code=1)
    assert "must be a subclass of margrave.models.importers.Importer" in margrave(
        *words, "torch.nn:ReLU", code=1
    )
    # MagFace's weights without its prefixes: only its user knows how their pixels were prepared.
    assert "magface_iresnet ->" in margrave(*words, "magface_iresnet")
    assert (open_model("ours.safetensors").card.mean, convert(torch.load("state.pth")).mean) == (
        0.0,
        0.5,
    )


def test_a_layout_and_a_backbone_are_one_too_many(folder: Path) -> None:
    words = ("--layout", "adaface_ir", "--backbone", "mbf")
    assert "leave out one of them" in margrave(
        "import", "state.pth", "m.safetensors", *words, code=1
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_says_how_pixels_are_prepared_and_where_that_is_written(layout: str) -> None:
    kind = LAYOUTS.get(layout)
    assert issubclass(kind, Importer) and kind.__doc__
    assert kind.patterns and kind.source
    assert kind.color_order in ("rgb", "bgr")


def test_every_file_of_the_folder_is_imported() -> None:
    files = {module.name for module in pkgutil.iter_modules(importers.__path__)}
    modules = {LAYOUTS.get(layout).__module__.rpartition(".")[2] for layout in LAYOUTS}
    shared = {"contract", "conversion", "shapes", "iresnet_names", "mobilefacenet_names"}
    assert files == modules | shared | {"vit_names"}
