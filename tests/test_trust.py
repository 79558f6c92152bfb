"""A name in a file is a program: it is followed only with the user's word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from margrave import backbones
from margrave.cli import app
from margrave.config import read_config, to_yaml
from margrave.doctor import examine_run
from margrave.inference import load_embedder
from margrave.models import ModelCard, save_model
from margrave.registry import import_path, names_from_file
from margrave.runs import RunFolder
from margrave.synthetic import SyntheticFaces

NETWORK = {
    "kind": "iresnet",
    "block_counts": [1, 1, 1, 1],
    "channels": [8, 8, 8, 8],
    "embedding_size": 8,
    "image_size": 32,
}
HOSTILE = {"kind": "pathlib:Path.touch", "self": "executed"}
PLACES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "data.train": lambda config: config["data"].update(train=HOSTILE),
    "backbone": lambda config: config.update(backbone=HOSTILE),
    "loss": lambda config: config.update(loss=HOSTILE),
    "head": lambda config: config.update(head=HOSTILE),
    "evaluation": lambda config: config.update(evaluation={"sets": {"one": {"images": HOSTILE}}}),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = {"train": {"kind": "synthetic", "num_identities": 4}, "image_size": 32}
    config = read_config([], {"data": data, "backbone": NETWORK})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    network = backbones.create(NETWORK)
    card = ModelCard(backbone=NETWORK, image_size=32)
    save_model(folder / "model.safetensors", network.state_dict(), card)
    SyntheticFaces(num_identities=2, images_per_identity=2, image_size=32).write(tmp_path / "faces")
    return folder


def poison(run: Path, place: str) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    PLACES[place](config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("command", [["doctor", "run"], ["train", "--resume", "run"]], ids=" ".join)
def test_a_runs_folder_names_no_code(run: Path, place: str, command: list[str]) -> None:
    poison(run, place)
    result = CliRunner().invoke(app, command)
    assert result.exit_code
    assert "names 'pathlib:Path.touch'; loading it would run" in str(result.exception)
    assert not Path("executed").exists()


@pytest.mark.parametrize("place", list(PLACES))
def test_python_refuses_the_same(run: Path, place: str) -> None:
    poison(run, place)
    for read in (lambda path: RunFolder(path).read_config(), examine_run):
        with pytest.raises(ValueError, match="give --trust-code"):
            read(run)


def test_a_models_card_names_no_code(run: Path) -> None:
    network = backbones.create(NETWORK)
    card = ModelCard(backbone=HOSTILE, image_size=32)
    save_model(run / "model.safetensors", network.state_dict(), card)
    with pytest.raises(ValueError, match=r"names 'pathlib:Path\.touch'"):
        load_embedder(run)
    for command in (
        ["evaluate", "pairs", "run", "--images", "faces", "--number", "20"],
        ["embed", "run", "faces", "x"],
    ):
        result = CliRunner().invoke(app, command)
        assert "names 'pathlib:Path.touch'" in str(result.exception)
    assert not Path("executed").exists()


def test_what_the_user_typed_is_followed(run: Path) -> None:
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from margrave.losses import Loss\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Loss):\n    margin: float = 0.1\n"
    )
    typed = {"loss": {"kind": "mine:Mine"}}
    assert RunFolder(run).read_config(typed).loss["kind"] == "mine:Mine"
    Path("recipe.yaml").write_text(json.dumps(typed))
    assert read_config(["recipe.yaml"], {}).loss["kind"] == "mine:Mine"
    (run / "config.yaml").write_text(to_yaml(RunFolder(run).read_config(typed)))
    with pytest.raises(ValueError, match="names 'mine:Mine'"):
        RunFolder(run).read_config()
    assert RunFolder(run).read_config(trust_code=True).loss["margin"] == 0.1


def test_the_gate_closes_behind_an_error() -> None:
    with pytest.raises(RuntimeError), names_from_file("x", trust_code=False):
        raise RuntimeError
    assert import_path("math:sqrt")(4) == 2


def test_resuming_looks_nothing_up_that_the_user_replaced(run: Path) -> None:
    settings = ["training.epochs=1", "training.batch_size=8", "training.precision=float32"]
    data = [
        "data.train.kind=synthetic",
        "data.train.num_identities=4",
        "data.image_size=32",
        "loss.kind=arcface",
    ]
    typed = [f"backbone={json.dumps(NETWORK)}", *settings, *data, "head.kind=chunked"]
    words = [word for setting in typed for word in ("--set", setting)]
    Path("empty.yaml").write_text("{}")
    begun = CliRunner().invoke(app, ["train", "empty.yaml", "--output", "mine", *words])
    assert begun.exit_code == 0, begun.output
    path = Path("mine/config.yaml")
    config = yaml.safe_load(path.read_text())
    Path("planted.py").write_text("open('executed', 'w').close()\n")
    config["loss"] = {"kind": "planted:Loss"}
    path.write_text(yaml.safe_dump(config))
    more = ["--set", "loss.kind=arcface", "--set", "training.epochs=2"]
    result = CliRunner().invoke(app, ["train", "--resume", "mine", *more])
    assert result.exit_code == 0, result.output
    assert "loss.kind is arcface, was planted:Loss" in " ".join(result.output.split())
    assert not Path("executed").exists()
