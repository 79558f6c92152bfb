"""Reports of runs, studies and results, without a browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_examples import pair_result_of, tiny_study, trained_run
from typer.testing import CliRunner

from margrave.cli import app
from margrave.evaluation import Figure, Result, write_results
from margrave.report import build_report, charts, open_input, write_page
from margrave.report.contents import Faces, Page

FILES_OF_0_1 = Path(__file__).parents[1] / "fixtures" / "version_0_1"


def titles(page: Page) -> list[str]:
    return [section.title for section in page.sections]


def text_of(page: Page) -> str:
    return "\n".join(
        block.text
        for section in page.sections
        for block in section.blocks
        if hasattr(block, "text")
    )


def luminance(color: str) -> float:
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#1d2329"])
def test_every_series_contrasts_with_either_background(background: str) -> None:
    for color in charts.COLORS:
        low, high = sorted([luminance(color), luminance(background)])
        assert (high + 0.05) / (low + 0.05) >= 3, color


def test_a_run_has_every_section_and_no_face_where_none_is_wanted(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", "kappaface")
    page = build_report([open_input(run)], lab=False)
    for title in (
        "In short",
        "What was compared",
        "Figures",
        "Error trade-off",
        "Scores",
        "Parts of the data",
        "Feature norm and true quality",
        "Error versus discard",
        "Calibration",
        "Training",
        "What the loss adapted",
        "Hardest pairs",
        "Classes with extreme margins",
        "Settings: run",
    ):
        assert title in titles(page)
    bare = build_report([open_input(run)], lab=False, faces=False)
    blocks = [block for section in bare.sections for block in section.blocks]
    assert not any(isinstance(block, Faces) for block in blocks)
    path = tmp_path / "out" / "report.html"
    write_page(bare, path)
    text = path.read_text(encoding="utf-8")
    assert "data:image" not in text and len(text) < 3e6
    # The page's own policy lets no request out, and nothing in it names another machine.
    assert "default-src 'none'" in text
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!#|data:)", own)


def test_images_that_are_gone_are_said_to_be_gone(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", "arcface", images=tmp_path / "faces")
    assert "Hardest pairs" in titles(build_report([open_input(run)], lab=False))
    shutil.rmtree(tmp_path / "faces")
    notes: list[str] = []
    page = build_report([open_input(run)], lab=False, note=notes.append)
    assert "Not shown: the images are gone or changed" in text_of(page)
    assert "no thumbnails of test" in notes[0]


def test_other_pairs_are_not_compared(tmp_path: Path) -> None:
    first, second = pair_result_of("first", seed=0), pair_result_of("second", seed=1)
    write_results(tmp_path / "same.json", [first, replace(first, name="again")])
    write_results(tmp_path / "other.json", [first, second])
    same = build_report([open_input(tmp_path / "same.json")], lab=False)
    other = build_report([open_input(tmp_path / "other.json")], lab=False)
    assert "cannot be compared" not in text_of(same) and "margrave compare" in text_of(same)
    assert "cannot be compared" in text_of(other)
    assert titles(same).count("Error trade-off") == 1
    assert {"Error trade-off: first", "Error trade-off: second"} <= set(titles(other))


def test_runs_share_their_curves(tmp_path: Path) -> None:
    one = trained_run(tmp_path / "a" / "run", "arcface")
    other = trained_run(tmp_path / "b" / "run", "arcface")
    page = build_report([open_input(one), open_input(other)], lab=False, faces=False)
    (training,) = [section for section in page.sections if section.title == "Training"]
    rows = training.blocks[0].spec["datasets" if "datasets" in training.blocks[0].spec else "layer"]  # pyright: ignore
    assert "run (2)" in json.dumps(rows)


def test_rates_over_ranks_are_a_curve(tmp_path: Path) -> None:
    figures = tuple(
        Figure(metric="identification rate", value=0.9 + rank / 100, at={"rank": rank})
        for rank in (1, 2, 5)
    )
    write_results(tmp_path / "r.json", [Result(protocol="identification", figures=figures)])
    page = build_report([open_input(tmp_path / "r.json")])
    assert "Rates" in titles(page)


def test_groups_come_with_their_rows(tmp_path: Path) -> None:
    results = [pair_result_of(name, seed) for seed, name in enumerate(("A", "B", "C"))]
    summary = Result(protocol="groups", name="all groups", figures=(), counts={"groups": 3})
    write_results(tmp_path / "g.json", [*results, summary])
    page = build_report([open_input(tmp_path / "g.json")])
    section = next(section for section in page.sections if section.title == "Groups")
    tables = [block for block in section.blocks if hasattr(block, "rows")]
    assert [row[0] for row in tables[0].rows] == ["A", "B", "C"]
    assert [row[0] for row in tables[1].rows][:2] == ["FDR", "GARBE"]


def test_what_a_file_says_cannot_become_markup(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(1)>"
    result = replace(pair_result_of(evil, seed=0), rules=evil, notes=(evil,))
    write_results(tmp_path / "r.json", [result])
    write_page(
        build_report([open_input(tmp_path / "r.json")], title=evil), tmp_path / "report.html"
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<script>alert" not in text
    data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert len(data) > 2
    for each in data:
        json.loads(each)


def test_code_that_a_run_names_is_not_imported(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", "arcface")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("kind: arcface", "kind: os:system"))
    notes: list[str] = []
    page = build_report([open_input(run)], note=notes.append)
    assert "Margin lab" not in titles(page)
    assert any("--trust-code" in note for note in notes)


def test_a_study_is_reported(tmp_path: Path) -> None:
    folder = tiny_study(tmp_path / "study")
    page = build_report([open_input(folder)])
    assert "Margin lab" in titles(page)
    assert any(title.startswith("Training: ") for title in titles(page))
    assert any(title.startswith("What the loss adapted: ") for title in titles(page))
    write_page(page, tmp_path / "study.html")
    assert (tmp_path / "study.html").stat().st_size < 8e6


def test_cells_without_metrics_are_left_out(tmp_path: Path) -> None:
    folder = tiny_study(tmp_path / "study")
    shutil.rmtree(folder / "cells")
    page = build_report([open_input(folder)], lab=False)
    assert not any(title.startswith("Training") for title in titles(page))


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for path in FILES_OF_0_1.rglob("*.json")
        if not path.name.startswith("state") and "results" in path.name
    ),
    ids=lambda path: str(path.relative_to(FILES_OF_0_1)),
)
def test_results_of_0_1_are_reported(path: Path, tmp_path: Path) -> None:
    write_page(build_report([open_input(path)], lab=False), tmp_path / "report.html")


def test_runs_of_0_1_are_reported(tmp_path: Path) -> None:
    runs = sorted({path.parent for path in FILES_OF_0_1.rglob("config.yaml")})
    assert runs
    for run in runs:
        page = build_report([open_input(run)], faces=False)
        write_page(page, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.json", "does not exist"),
        ("folder", "is none; give a run's folder"),
        ("damaged.json", "damaged.json"),
        ("newer.json", "use the version that wrote it"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.json").write_text('{"format": "margrave results", "format_version": 1')
    newer = {"format": "margrave results", "format_version": 99, "results": []}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=message):
        open_input(tmp_path / name)


def test_the_command_writes_the_page_and_says_so(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [pair_result_of("pairs", seed=0)])
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", str(tmp_path / "r.json"), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "open it in a browser" in result.output
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    wrong = CliRunner().invoke(app, ["report", str(tmp_path / "r.json"), "-o", "page.pdf"])
    assert "must end in .html" in str(wrong.exception)


def test_norms_that_say_nothing_are_not_drawn() -> None:
    result = pair_result_of("pairs", seed=0)
    assert result.scores is not None
    flat = replace(result.scores, lower_norms=(1.0,) * len(result.scores.same))
    from margrave.report.sections.pair_scores import discard_section

    section = discard_section(replace(result, scores=flat))
    assert "all have one length" in section.blocks[0].text  # pyright: ignore
    assert np.all([block for block in section.blocks])
