"""Reports of runs, studies and results, without a browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from report_examples import pair_result_of, tiny_study, trained_run
from typer.testing import CliRunner

from margrave.cli import app
from margrave.evaluation import Figure, Origin, Result, write_results
from margrave.report import build_report, charts, open_input, write_page
from margrave.report.contents import Chart, Faces, Page, Table
from margrave.report.sections.pair_scores import curves_section
from margrave.report.sections.rates import rates_section
from margrave.report.sections.study import study_section
from margrave.synthetic import SyntheticFaces

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


def test_results_of_one_name_and_model_have_a_curve_each() -> None:
    """One model with and without flips, in one results.json."""
    result = replace(pair_result_of("lfw", seed=0), origin=Origin(model="m.onnx"))
    chart = next(block for block in curves_section([result] * 2).blocks if isinstance(block, Chart))
    assert chart.table is not None
    assert [row[0] for row in chart.table.rows] == ["m.onnx", "m.onnx (2)"]
    figures = [Figure(metric="TAR", value=far, at={"FAR": far}) for far in (0.001, 0.01, 0.1)]
    rates = replace(result, scores=None, figures=tuple(figures))
    (chart,) = rates_section([rates] * 2).blocks
    assert isinstance(chart, Chart) and "m.onnx (2)" in json.dumps(chart.spec)


def test_results_of_one_name_are_named_by_their_files(tmp_path: Path) -> None:
    for name in ("arcface", "adaface"):
        write_results(tmp_path / f"{name}.json", [pair_result_of("others", seed=0)])
    files = [open_input(tmp_path / f"{name}.json") for name in ("arcface", "adaface")]
    page = build_report(files, lab=False)
    assert {"Figures: arcface, others", "Figures: adaface, others"} <= set(titles(page))
    assert titles(page).count("Error trade-off") == 1


def test_results_of_files_of_one_name_are_numbered(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "lfw.json" for folder in ("arcface", "adaface")]
    for path in paths:
        path.parent.mkdir()
        write_results(path, [pair_result_of("others", seed=0)])
    page = build_report([open_input(path) for path in paths], lab=False)
    assert {"Figures: lfw, others", "Figures: lfw (2), others"} <= set(titles(page))


def test_runs_share_their_curves(tmp_path: Path) -> None:
    one = trained_run(tmp_path / "a" / "run", "arcface")
    other = trained_run(tmp_path / "b" / "run", "arcface")
    page = build_report([open_input(one), open_input(other)], lab=False, faces=False)
    (training,) = [section for section in page.sections if section.title == "Training"]
    assert "run (2)" in json.dumps(training.blocks[0].spec)  # pyright: ignore


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
    write_results(tmp_path / "other.json", [pair_result_of("lfw", seed=9)])
    page = build_report([open_input(tmp_path / name) for name in ("other.json", "g.json")])
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


@pytest.mark.parametrize("metric", ["accuracy", "EER"])
def test_positive_differences_favor_the_loss_named_first(metric: str) -> None:
    figures = (
        Figure(metric=metric, value=0.1, at={"loss": "good"}),
        Figure(metric=metric, value=0.3, at={"loss": "bad"}),
        # The better loss is second, and its value is positive for every metric.
        Figure(metric=f"difference in {metric}", value=0.2, at={"first": "bad", "second": "good"}),
    )
    settings = {"metric": metric}
    section = study_section(Result(protocol="study", figures=figures, settings=settings))
    (table,) = [
        block for block in section.blocks
        if isinstance(block, Table) and block.caption.startswith("Differences")
    ]  # fmt: skip
    assert "the first-named loss is better" in table.caption
    assert table.columns[:2] == ["improvement", metric]
    assert table.rows[0][:2] == ["good over bad", "20.00 %"]


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
        ("folder", "is not a run, a study or a result file"),
        ("empty.json", "holds no results"),
        ("many.json", "51 results, but a report shows at most 50"),
        ("damaged.json", "damaged.json"),
        ("newer.json", "use the version that wrote it"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.json").write_text('{"format": "margrave results", "format_version": 1')
    empty = {"format": "margrave results", "format_version": 1, "results": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    write_results(tmp_path / "many.json", [Result(protocol="a", figures=())] * 51)
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
    assert "all have the same norm" in section.blocks[0].text  # pyright: ignore
    assert np.all([block for block in section.blocks])


NUMBERS = (1e308, None, "x", [], {}, [1], True)


@pytest.mark.parametrize("field", ["margin", "hard_share", "samples", "classes"])
def test_a_damaged_line_of_adaptation_is_left_out(tmp_path: Path, field: str) -> None:
    run = trained_run(tmp_path / "run", "kappaface")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    record = next(line for line in lines if line["kind"] == "adaptation")
    others = [line for line in lines if line["kind"] == "training"]
    columns = (
        {"class": [0], "images": [1, 2]},
        {"margin_weight": [1.0]},
        {"class": [10**9], "images": [1], "margin_weight": [0.5], "concentration": [None]},
        {"feature_norm": 5},
        {"feature_norm": ["x"], "margin": [None], "target_cosine": [1e300]},
    )
    for value in (*NUMBERS, *columns):
        damaged = [*others, {**record, field: value}]
        text = "".join(json.dumps(line) + "\n" for line in damaged)
        (run / "metrics.jsonl").write_text(text)
        write_page(build_report([open_input(run)], lab=False), tmp_path / "report.html")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" * 400])
def test_numbers_that_are_none_are_refused_with_their_line(tmp_path: Path, value: str) -> None:
    run = trained_run(tmp_path / "run", "arcface")
    (run / "metrics.jsonl").write_text(
        f'{{"kind": "training", "step": 1, "epoch": 1, "loss": {value}}}\n'
    )
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1"):
        open_input(run)


@pytest.mark.parametrize(
    "change",
    [
        {"distances": [0.1]},
        {"distances": []},
        {"same": [True]},
        {"lower_norms": []},
        {"folds": 0},
        {"folds": 100_000},
        {"identities": [[0, 0]]},
        {"identities": [[0, 0]] * 600},
        {"distances": [-5.0] * 600},
        {"lower_norms": [-1.0] * 600},
    ],
    ids=lambda change: f"{next(iter(change))}-{str(change)[:30]}",
)
def test_scores_that_contradict_are_refused_with_their_file(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "r.json"
    write_results(path, [pair_result_of("pairs", seed=0)])
    content = json.loads(path.read_text())
    content["results"][0]["scores"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"r\.json is damaged: results\.0\.scores"):
        open_input(path)


@pytest.mark.parametrize("name", ["series", "a.b", "it's", '"q', "\ud800", "x" * 10**6])
def test_odd_names_are_drawn(tmp_path: Path, name: str) -> None:
    points = [{name: far, "series": "s"} for far in (0.001, 0.01, 0.1)]
    figures = tuple(Figure(metric=name, value=0.5, at=at) for at in points)
    parts = (Figure(metric="accuracy", value=1e308, stratum=name),) * 2
    result = Result(protocol="ijb", name=name, figures=(*figures, *parts), notes=(name,))
    write_results(tmp_path / "r.json", [result])
    write_page(build_report([open_input(tmp_path / "r.json")]), tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 1.2e6


@pytest.mark.parametrize(
    "settings",
    [
        {"losses": 5},
        {"losses": ["ab"]},
        {"losses": {"a": 5}},
        {"seeds": 5},
        {"seeds": ["x"]},
        {"seeds": [10**300]},
        {"condition": "../../etc"},
        {"losses": {"../../x": {"kind": "arcface", "name": "../../y"}}},
        {"losses": {"os": {"kind": "os:system"}}},
        {"losses": {"a": {"kind": "arcface", "scale": 1e308}}},
    ],
    ids=lambda settings: str(settings)[:40],
)
def test_a_studys_odd_settings_cost_a_section_at_most(tmp_path: Path, settings: dict) -> None:
    folder = tiny_study(tmp_path / "study")
    content = json.loads((folder / "results.json").read_text())
    content["results"][0]["settings"] |= settings
    (folder / "results.json").write_text(json.dumps(content))
    has_lab = "scale" in str(settings) or "os:" in str(settings)
    page = build_report([open_input(folder)], lab=has_lab)
    assert "data" in titles(page) and "Margin lab" not in titles(page)
    write_page(page, tmp_path / "report.html")


def test_a_studys_folder_with_other_results_is_refused(tmp_path: Path) -> None:
    folder = tiny_study(tmp_path / "study")
    write_results(folder / "results.json", [pair_result_of("pairs", seed=0)])
    with pytest.raises(ValueError, match="results that are not of this study"):
        open_input(folder)


def test_a_studys_results_alone_are_its_section(tmp_path: Path) -> None:
    folder = tiny_study(tmp_path / "study")
    page = build_report([open_input(folder / "results.json")], lab=False)
    assert "data" in titles(page)


def test_a_run_cannot_bring_other_pictures_or_files_into_its_report(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", "kappaface")
    images = SyntheticFaces(num_identities=8, images_per_identity=6, image_size=32, seed=7)
    images.write(tmp_path / "private")
    notes: list[str] = []

    def report_with(source: dict) -> Page:
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"]["train"] = source
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        notes.clear()
        return build_report([open_input(run)], lab=False, note=notes.append)

    page = report_with({"kind": "folder", "root": str(tmp_path / "private")})
    (section,) = [each for each in page.sections if each.title == "Classes with extreme margins"]
    assert not any(isinstance(block, Faces) for block in section.blocks)
    report_with({"kind": "shards", "root": "http://127.0.0.1:9/x"})
    assert any("makes no network requests" in note for note in notes)
    report_with({"kind": "synthetic", "num_identities": 10**9})
    assert any("opens at most 200,000 identities" in note for note in notes)

    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0:root\nother:x:1\n")
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(secret)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        build_report([open_input(run)], lab=False, faces=False)


def test_sections_never_share_an_address(tmp_path: Path) -> None:
    results = [pair_result_of(name, seed) for seed, name in enumerate(("a.b", "a-b", "chart 1"))]
    write_results(tmp_path / "r.json", results)
    write_page(build_report([open_input(tmp_path / "r.json")], lab=False), tmp_path / "r.html")
    ids = re.findall(r' id="([^"]*)"', (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))
