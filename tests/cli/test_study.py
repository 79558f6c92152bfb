"""``margrave study``: its options, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from study_examples import STUDY
from typer.testing import CliRunner

from margrave.cli import app
from margrave.cli.study import _parse_duration
from margrave.cli.tables import study_table
from margrave.evaluation import PairMetric, SeedComparison, compare_seeds
from margrave.studies import Claim, StudyConfig, judge_claim, read_study, verdict
from margrave.studies.comparison import METRICS
from margrave.synthetic import SyntheticFaces


def output(*words: str) -> str:
    result = CliRunner().invoke(app, ["study", *words])
    assert result.exit_code == 0, result.output
    return result.output


def error(*words: str) -> str:
    result = CliRunner().invoke(app, ["study", *words])
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


def test_it_lists_its_studies() -> None:
    text = output("--list")
    assert "quality" in text and "long-tail" in text and "Which margin, on my data?" in text


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(STUDY))
    assert "no images: give --data FOLDER" in error()
    assert "write 90s, 10m or 2h" in error("mine.yaml", "--budget", "10")
    assert "finite time above 0" in error("mine.yaml", "--budget", "0s")
    assert "finite time above 0" in error("mine.yaml", "--budget", "infs")
    resumed = error("mine.yaml", "--resume", "x")
    assert "add only --seeds, --devices, --no-train, --trust-code and --set" in resumed
    assert "is not a study's folder" in error("--resume", "x")
    SyntheticFaces(num_identities=10, images_per_identity=2, image_size=32).write("few")
    assert "too few images for 20 balanced pairs" in error("--data", "few")
    assert _parse_duration("1.5h") == 5400


def test_a_study_of_ones_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SyntheticFaces(num_identities=20, images_per_identity=12, image_size=32).write("faces")
    run = {key: value for key, value in STUDY["run"].items() if key != "evaluation"}
    run["data"] = {"image_size": 32, "cached": True}
    Path("mine.yaml").write_text(yaml.safe_dump({**STUDY, "run": run, "question": "Which?"}))
    words = ["--data", "faces", "--losses", "arcface", "--seeds", "1", "--budget", "3s"]
    text = " ".join(output("mine.yaml", *words, "-o", "out").split())
    assert "an epoch of the slowest loss takes" in text and "Which?" in text
    assert "arcface alone was trained" in text
    assert (tmp_path / "out" / "figures.csv").is_file()


def comparison(gain: float, metric: PairMetric = "accuracy") -> SeedComparison:
    generator = np.random.default_rng(0)
    same = np.arange(600) % 2 == 0
    rows = {
        name: np.clip(2 - 0.3 * (generator.standard_normal((5, 600)) + own * (2 * same - 1)), 0, 4)
        for name, own in (("adaface", 1.5 + gain), ("arcface", 1.5), ("cosface", 1.5))
    }
    return compare_seeds(rows, same, 10, metric=metric, resamples=50)


def test_a_verdict_names_no_winner_that_is_none() -> None:
    config = read_study([STUDY], {})
    better, equal = comparison(0.8), comparison(0.0)
    assert verdict(better, config).startswith("adaface is better than every other loss.")
    assert "No loss is significantly better or worse than" in verdict(equal, config)
    assert "detected in four of five such studies" in verdict(equal, config)
    two = SeedComparison(
        better.means, tuple(each for each in better.differences if each.first != "cosface")
    )
    assert two.winner == "adaface"


def test_a_verdict_names_losses_that_are_missing() -> None:
    config = read_study([STUDY], {"losses": {"magface": {"kind": "magface"}}})
    text = verdict(comparison(0.8), config)
    assert text.startswith("adaface is better than every other compared loss.")
    assert text.endswith("Not compared, because none of their runs finished: magface.")
    assert verdict(comparison(0.0), config).startswith("No compared loss is significantly better")
    variants = {"magface": {"name": "magface, scale 8"}, "arcface": {"name": "arcface, margin 1"}}
    assert verdict(comparison(0.8), config, variants).endswith(
        ": arcface, margin 1, magface, scale 8."
    )
    everything = {"magface": {"name": "cosface"}}
    assert "every other loss." in verdict(comparison(0.8), config, everything)


@pytest.mark.parametrize("metric", ["accuracy", "EER"])
def test_every_other_loss_is_behind_the_best(metric: str) -> None:
    compared = comparison(0.8, METRICS[metric])
    table = study_table("data", compared, metric)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert "behind adaface" in cells and cells["loss"][0] == "adaface"
    behind = [float(str(cell)) for cell in cells["behind adaface"][1:]]
    values = [float(str(cell)) for cell in cells[f"{metric} %"]]
    sign = -1 if metric == "EER" else 1
    for value, distance in zip(values[1:], behind, strict=True):
        assert distance > 0 and distance == pytest.approx(sign * (values[0] - value), abs=0.02)


def claim(helps: bool, **changes: Any) -> Claim:
    values = {"text": "t", "loss": "adaface", "over": "arcface", "condition": "data"}
    return Claim(**{**values, "helps": helps, **changes})


def test_claims_are_judged_by_the_corrected_test() -> None:
    config: StudyConfig = read_study([STUDY], {})
    better, equal = comparison(0.8), comparison(0.0)
    assert judge_claim(claim(True), better, config).startswith("reproduced: +")
    assert judge_claim(claim(False), better, config).startswith(
        "contradicted, adaface is better: +"
    )
    assert judge_claim(claim(True), equal, config).startswith("not reproduced: ")
    assert judge_claim(claim(False), equal, config).startswith("as claimed, no difference")
    reverse = claim(True, loss="arcface", over="adaface")
    assert judge_claim(reverse, better, config).startswith("contradicted, adaface is better: -")
    assert "was not trained" in judge_claim(claim(True, over="softmax"), better, config)
