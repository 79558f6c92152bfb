"""What holds for every registered protocol, and for one from outside."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from margrave import protocols
from margrave.cli import app
from margrave.evaluation import read_results
from margrave.inference import embed_to_store, load_embedder
from margrave.models import ModelCard, save_model
from margrave.protocols import PROTOCOLS, Protocol
from margrave.synthetic import SyntheticFaces

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_is_documented(name: str) -> None:
    protocol = PROTOCOLS.get(name)
    assert issubclass(protocol, Protocol) and protocol.__doc__
    for field, info in protocol.model_fields.items():
        assert info.description, f"{name}.{field} has no docstring"
        assert info.is_required() <= (field in protocol.positional)
    assert set(protocol.positional) <= set(protocol.model_fields)
    assert f"`evaluate {name}`" in (ROOT / "docs" / "reference" / "protocols.md").read_text()
    assert protocol.__name__ in protocols.__all__


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_is_a_command(name: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", name, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for field in PROTOCOLS.get(name).model_fields:
        shown = field if field in PROTOCOLS.get(name).positional else f"--{field}"
        assert shown.replace("_", "-") in result.output.replace("_", "-").lower()


def test_the_group_lists_every_protocol() -> None:
    result = CliRunner().invoke(app, ["evaluate", "--help"])
    assert all(name in result.output for name in PROTOCOLS)


def test_a_protocol_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from margrave import backbones

    spec = {"kind": "mbf", "image_size": 32, "embedding_size": 8}
    network = backbones.create(spec)
    card = ModelCard(backbone=spec, image_size=32)
    save_model(tmp_path / "model.safetensors", network.state_dict(), card)
    faces = SyntheticFaces(num_identities=6, images_per_identity=3, image_size=32)
    embed_to_store(load_embedder(tmp_path / "model.safetensors"), faces, tmp_path / "features")
    shutil.copy(ROOT / "examples" / "my_protocol.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    kind = "my_protocol:LeaveOneOut"
    words = ["evaluate", kind, "features", "--minimum-images", "3", "-o", "results.json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    (read,) = read_results("results.json")
    assert read.protocol == kind and read.counts == {"images": 18}
    assert read.settings["minimum_images"] == 3
    value = read.figure("rank-1 rate").value
    assert value is not None and np.isclose(value * 18, round(value * 18))
