"""``margrave doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from margrave.cli import app
from margrave.data import balanced_pairs, write_pairs_bin
from margrave.synthetic import SyntheticFaces


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *(str(part) for part in arguments)])


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    SyntheticFaces(num_identities=10, images_per_identity=6, image_size=64).write(folder)
    return folder


def test_a_healthy_folder(faces: Path) -> None:
    result = doctor(faces)
    assert result.exit_code == 0
    assert (
        "nothing serious found" in result.output and "60 images of 10 identities" in result.output
    )


def test_findings_for_programs(faces: Path, tmp_path: Path) -> None:
    for path in sorted(faces.glob("*/*.*")):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        reversed_colors = cv2.imread(str(path))[..., ::-1]
        cv2.imwrite(str(tmp_path / path.parent.name / f"{path.stem}.png"), reversed_colors)
    result = doctor(tmp_path, "--json", "--images", 60)
    assert result.exit_code == 1
    findings = json.loads(result.stdout)
    assert findings[0]["fault"] == "reversed_colors" and findings[0]["examples"]
    assert {"severity", "message", "remedy", "share", "figures"} <= set(findings[0])
    shown = doctor(tmp_path)
    assert "serious reversed_colors" in shown.output and "-> exchange" in shown.output


def test_verification_sets_and_checkpoints(tmp_path: Path) -> None:
    drawn = SyntheticFaces(num_identities=10, images_per_identity=6, image_size=64)
    pairs = balanced_pairs(drawn.labels, 20, seed=0)
    images = [drawn.read(int(i)) for i in np.stack([pairs.first, pairs.second], axis=1).ravel()]
    encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
    write_pairs_bin(tmp_path / "own.bin", encoded, [True] * 20)
    assert "one_sided_pairs" in doctor(tmp_path / "own.bin").output
    torch.save({"some.weight": torch.ones(3)}, tmp_path / "other.pth")
    assert "unknown_layout" in doctor(tmp_path / "other.pth").output


def test_no_patient(tmp_path: Path) -> None:
    result = doctor(tmp_path / "nowhere")
    assert isinstance(result.exception, ValueError) and "nowhere" in str(result.exception)


def test_options_for_another_kind_of_source_are_refused(faces: Path, tmp_path: Path) -> None:
    pairs, run, model = tmp_path / "own.bin", tmp_path / "run", tmp_path / "model.pth"
    pairs.touch()
    run.mkdir()
    (run / "config.yaml").touch()
    model.touch()
    for source, options, message in (
        (faces, ("--data", faces), "--data belongs to a model, but the source is a data set"),
        (pairs, ("--mean", "0.5"), "--mean belongs to a model, but the source is a verification"),
        (run, ("--layout", "magface"), "--layout belongs to a model, but the source is a run"),
        (faces, ("--key", "a", "--std", "1"), "leave out --key, --std"),
        (model, ("--detector", "yunet.onnx"), "but the source is a model; leave out --detector"),
    ):
        error = doctor(source, *options).exception
        assert isinstance(error, ValueError) and message in str(error)
