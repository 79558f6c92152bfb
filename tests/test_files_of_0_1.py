"""Every kind of file that Margrave 0.1 wrote is still read; see fixtures/version_0_1/README.md."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from margrave.cli import app
from margrave.evaluation import read_results
from margrave.inference import FeatureStore

FILES = Path(__file__).parent / "fixtures" / "version_0_1"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the current folder: runs name their images relative to it."""
    folder = tmp_path / "files"
    shutil.copytree(FILES, folder)
    monkeypatch.chdir(folder)
    return folder


def margrave(*arguments: object, code: int = 0) -> str:
    return " ".join(run(*arguments, code=code).output.split())


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def verify(model: str, *arguments: object, code: int = 0) -> str:
    # The faces are painted, and no detector sees them.
    crops = ("--aligned", "--unchecked", "--quality-floor", 0)
    return margrave("verify", "-m", model, *crops, *arguments, code=code)


@pytest.mark.parametrize("loss", ["adaface", "kappaface"])
def test_an_interrupted_run_is_resumed_to_its_end(here: Path, loss: str) -> None:
    run = f"interrupted_{loss}"
    output = margrave("train", "--resume", run)
    assert "after 1 epoch and" in output and "settings changed" not in output
    assert (here / run / "model.safetensors").is_file()
    (result,) = read_results(here / run / "results.json")
    assert result.name == "own"
    resumed, expected = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (here / run / "metrics.jsonl", here / f"uninterrupted_{loss}.jsonl")
    )
    # 0.1 did not record what the loss adapts.
    resumed = [line for line in resumed if line["kind"] != "adaptation"]
    assert len(resumed) == len(expected)
    # Lines from before the interruption are in both under the names of 0.1; of the later ones,
    # those figures whose names have stayed are compared.
    names = {"step", "epoch", "loss", "learning_rate", "gradient_norm", "feature_norm", "accuracy"}
    for now, then in zip(resumed, expected, strict=True):
        assert now["kind"] == then["kind"] and names & set(now) == names & set(then)
        for name in names & set(then):
            assert now[name] == pytest.approx(then[name], rel=1e-3, abs=1e-6), name


def test_a_finished_run_is_read(here: Path) -> None:
    margrave("embed", "finished", "faces", "again", "--no-flips")
    expected, again = FeatureStore(here / "run_features"), FeatureStore(here / "again")
    np.testing.assert_allclose(again.embeddings, expected.embeddings, rtol=1e-3, atol=1e-4)
    assert again.names[:] == expected.names[:]
    margrave("evaluate", "pairs", "finished", "--images", "faces", "--number", 20)
    margrave("evaluate", "pairs", "finished/model.safetensors", "pairs.bin")
    # The run has learned nothing and was evaluated on what it was trained on: two true findings.
    findings = json.loads(run("doctor", "finished", "--json", code=1).stdout)
    faults = {finding["fault"] for finding in findings if finding["severity"] == "serious"}
    assert {"evaluation_leak", "collapsed_embeddings"} <= faults


def test_a_run_without_its_checkpoint_is_trained_from_its_configuration(here: Path) -> None:
    output = margrave("train", "--resume", "finished")
    assert "training on 40 images of 10 identities" in output


@pytest.mark.parametrize("model", ["finished", "imported.onnx"])
def test_operating_points_decide(here: Path, model: str) -> None:
    one, other = "faces/p00/p00_0001.png", "faces/p01/p01_0002.png"
    assert "FAR 0.01, measured on 40 images of 10 people in faces" in verify(model, one, one)
    assert "FAR 0.1," in verify(model, one, one, "--far", "0.1")
    if model == "imported.onnx":
        output = verify(model, one, other, code=3)
        assert "different people" in output and "threshold 0.9746" in output


def test_features_are_read_and_belong_to_their_model(here: Path) -> None:
    margrave("embed", "imported.onnx", "faces", "again")
    features, again = FeatureStore(here / "features"), FeatureStore(here / "again")
    np.testing.assert_allclose(features.embeddings, again.embeddings, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(features.labels, again.labels)
    assert features.flipped is not None and again.flipped is not None
    np.testing.assert_allclose(features.flipped, again.flipped, rtol=1e-4, atol=1e-4)
    assert FeatureStore(here / "run_features").flipped is None
    assert (FeatureStore(here / "others").labels == -1).all()
    output = margrave("threshold", "imported.onnx", "features", "--far", "0.05", "--resamples", 20)
    assert "720 impostor pairs" in output
    assert "FAR 0.01" in verify("imported.onnx", *["faces/p00/p00_0001.png"] * 2)


def test_embedding_continues_in_a_store_of_0_1(here: Path) -> None:
    before = (here / "features" / "blocks.jsonl").read_bytes()
    assert "40 images" in margrave("embed", "imported.onnx", "faces", "features")
    assert (here / "features" / "blocks.jsonl").read_bytes() == before


def test_features_give_the_figures_that_0_1_wrote(here: Path) -> None:
    output = margrave("evaluate", "pairs", "features", "pairs.csv", "--resamples", 20)
    expected = json.loads((here / "results" / "pairs.json").read_text())["pairs.csv"]
    assert f"{100 * expected['accuracy']:.2f}" in output
    assert f"{expected['area_under_roc']:.4f}" in output


def test_an_interrupted_evaluation_is_continued(here: Path) -> None:
    options = ("--distractors", "others", "--resamples", 20, "--state", "all_to_all.state")
    # The targets that 0.1 chose, which counted genuine pairs as well.
    options = (*options, "--far", "0.1,0.01,0.001")
    output = margrave("evaluate", "all-to-all", "features", *options)
    expected = json.loads((here / "results" / "all_to_all.json").read_text())["verification"][0]
    assert f"{100 * expected['tar']:.2f}" in output
    assert not (here / "all_to_all.state").exists()


@pytest.mark.parametrize("packed", ["records", "shards"])
def test_packed_images_are_read(here: Path, packed: str) -> None:
    settings = ("--set", "training.epochs=1", "--set", "training.batch_size=3")
    output = margrave("train", "finished/config.yaml", "--data", packed, "-o", "run", *settings)
    assert f"training on 6 images of 2 identities ({packed})" in output
    assert "6 images" in margrave("pack", packed, "again", "--size", 16)
    if packed == "records":
        for name in ("train.rec", "train.idx", "property"):
            assert (here / "again" / name).read_bytes() == (here / packed / name).read_bytes()


def test_a_verification_set_is_read(here: Path) -> None:
    margrave("embed", "imported.onnx", "pairs.bin", "of_pairs")
    assert len(FeatureStore(here / "of_pairs").labels) == 10
    assert "5" in margrave("evaluate", "pairs", "of_pairs", "pairs.bin", "--resamples", 0)


def test_aligned_photos_are_not_aligned_again(here: Path) -> None:
    if find_spec("mtcnn") is None:
        pytest.skip("needs the extra align")
    with open(here / "aligned" / "rejected.csv", newline="") as file:
        rejected = [row["photo"] for row in csv.DictReader(file)]
    assert rejected == ["p1/nobody.png"]
    # Empty files: they would be rejected, were they opened.
    for photo in ("p0/0.png", "p1/0.png", "p1/nobody.png"):
        path = here / "photos" / photo
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    before = (here / "aligned" / "aligned.jsonl").read_bytes()
    assert "2 faces from 2 photos" in margrave("align", "photos", "aligned", "--size", 32)
    assert (here / "aligned" / "aligned.jsonl").read_bytes() == before


MAIN_FIGURES: dict[str, Callable[[Any], list[float]]] = {
    "all_to_all": lambda file: [file["verification"][0]["tar"], file["ranks"][0]["rate"]],
    "evaluate": lambda file: [file["faces"]["accuracy"]],
    "groups": lambda file: [file["mean"], file["groups"]["A"]["accuracy"]],
    "identification": lambda file: [file["ranks"][0]["rate"]],
    "ijb": lambda file: [
        file["verification"]["accept_rates"][0]["tar"], file["search"]["ranks"][0]["rate"]
    ],
    "megaface": lambda file: [file["verification"][0]["tar"], file["ranks"][0]["rate"]],
    "pairs": lambda file: [file["pairs.csv"]["accuracy"]],
    "templates_all_pairs": lambda file: [file["all_pairs"]["verification"][0]["tar"]],
    "templates_pairs": lambda file: [file["verification"]["accept_rates"][0]["tar"]],
    "templates_search": lambda file: [file["search"]["ranks"][0]["rate"]],
    "templates_surveillance": lambda file: [file["closed"]["ranks"][0]["rate"]],
    "youtube": lambda file: [file["YTF"]["accuracy"]],
}  # fmt: skip


def _figures_of(path: Path) -> list[float]:
    """The values of every figure that the current code reads from a file of results."""
    read = read_results(path)
    assert len(read) >= 1
    return [figure.value for result in read for figure in result.figures]


@pytest.mark.parametrize("name", sorted(MAIN_FIGURES))
def test_results_are_read(name: str) -> None:
    path = FILES / "results" / f"{name}.json"
    values = _figures_of(path)
    for expected in MAIN_FIGURES[name](json.loads(path.read_text())):
        assert any(value == pytest.approx(expected, abs=1e-12) for value in values)


def test_the_results_of_a_run_are_read() -> None:
    path = FILES / "finished" / "results.json"
    assert json.loads(path.read_text())["own"]["accuracy"] in _figures_of(path)


def test_a_set_of_pairs_may_have_a_commands_name(tmp_path: Path) -> None:
    own = json.loads((FILES / "finished" / "results.json").read_text())["own"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"groups": own, "probes": own}))
    assert [result.name for result in read_results(path)] == ["groups", "probes"]
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="holds no results"):
        read_results(path)


def test_a_comparison_is_read() -> None:
    path = FILES / "results" / "compare.json"
    accuracy = json.loads(path.read_text())[0]
    assert accuracy["metric"] == "accuracy"
    values = _figures_of(path)
    assert {accuracy["first"], accuracy["second"], accuracy["difference"]} & set(values)


def test_every_file_of_results_is_among_these() -> None:
    assert {path.stem for path in (FILES / "results").iterdir()} == {*MAIN_FIGURES, "compare"}
