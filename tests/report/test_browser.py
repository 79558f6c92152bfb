"""The pages in a browser: nothing is asked of other machines, every control does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from headless_browser import AXE, OVERFLOW, check_accessible
from report_examples import tiny_study, trained_run

from margrave.report import build_report, lab_page, lab_tables, open_input, write_page

pytestmark = pytest.mark.service
LOSSES = ("arcface", "adaface", "curricularface", "kappaface", "sv_softmax", "elasticface")
SIZES = [(1280, "light"), (390, "dark")]


def open_page(browser: Any, path: Path, width: int, scheme: str) -> Any:
    """The page, which fails the test if it logs anything or asks for anything."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=bool(AXE)
    )
    page = context.new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.faults.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('svg'))"
    )
    page.faults = [
        fault for fault in page.faults if fault != path.as_uri() and not fault.startswith("data:")
    ]
    return page


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("kind", ["run", "study"])
def test_a_report_is_drawn(
    browser: Any, tmp_path: Path, width: int, scheme: str, kind: str
) -> None:
    folder = tmp_path / kind
    folder = trained_run(folder, "kappaface") if kind == "run" else tiny_study(folder)
    path = tmp_path / "report.html"
    write_page(build_report([open_input(folder)], lab=False), path)
    page = open_page(browser, path, width, scheme)
    check_accessible(page)
    assert page.faults == []
    assert page.evaluate(OVERFLOW) == 0
    # Every link leads somewhere, and text has the page's color in either scheme.
    missing = (
        "[...document.querySelectorAll('nav a')].filter((a) => !document.querySelector(a.hash))"
    )
    assert page.evaluate(missing + ".length") == 0
    colors = page.evaluate(
        "[getComputedStyle(document.querySelector('.chart text')).fill,"
        " getComputedStyle(document.body).color]"
    )
    assert colors[0] == colors[1]
    page.locator("summary").first.click()
    assert page.locator("details[open]").count() == 1
    # A chart stays within its card when the page is narrow.
    widest = (
        "Math.max(...[...document.querySelectorAll('.chart svg')].map((svg) =>"
        " svg.getBoundingClientRect().right - svg.closest('.chart').getBoundingClientRect().right))"
    )
    assert page.evaluate(widest) <= 1


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_control_of_the_lab_changes_what_it_should(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    tables = lab_tables({name: {"kind": name} for name in LOSSES})
    path = tmp_path / "lab.html"
    write_page(lab_page(None, tables), path)
    page = open_page(browser, path, width, scheme)
    page.wait_for_selector("#lab[data-ready]")
    check_accessible(page)
    assert page.evaluate(OVERFLOW) == 0

    def rows(chart: str) -> list[dict[str, Any]]:
        return page.evaluate(f"window.margraveLab.data().{chart}")

    drawn = "[...document.querySelectorAll('#lab .chart svg')].map((svg) => svg.innerHTML).join()"
    curves = ("target", "negatives", "gradient")

    # Every loss can be chosen, and every slider and choice of it changes a curve.
    for name in LOSSES:
        page.select_option("#lab fieldset[data-slot='0'] select[data-role='loss']", name)
        assert {row["loss"].split(" (")[0] for row in rows("target") if row["slot"] == 1} == {name}
        controls = page.locator("#lab fieldset[data-slot='0'] [data-role='parameters'] label")
        for number in range(controls.count()):
            before, picture = [rows(chart) for chart in curves], page.evaluate(drawn)
            control = controls.nth(number).locator("input, select")
            if control.evaluate("(element) => element.tagName") == "INPUT":
                control.focus()
                page.keyboard.press("End")
                shown = controls.nth(number).locator("output").inner_text()
                assert shown == control.get_attribute("aria-valuetext")
            else:
                last = control.locator("option").last.get_attribute("value")
                first = control.locator("option").first.get_attribute("value")
                control.select_option(last if control.input_value() != last else first)
            if name != "elasticface":  # Its std matters only where the drawn margin is not 0.
                assert [rows(chart) for chart in curves] != before, (name, number)
                page.wait_for_function(f"(before) => {drawn} !== before", arg=picture)

    # What no chosen loss depends on cannot be moved; what one does changes its curve.
    for slot, name in enumerate(("arcface", "adaface", "curricularface", "kappaface")):
        page.select_option(f"#lab fieldset[data-slot='{slot}'] select[data-role='loss']", name)
    assert page.locator("#lab-context-margin_noise").is_disabled()
    for context, chart, slot in (
        ("feature_norm", "target", 2),
        ("margin_weight", "target", 4),
        ("mean_target_cosine", "negatives", 3),
        ("target_angle", "negatives", 3),
    ):
        before = rows(chart)
        page.focus(f"#lab-context-{context}")
        page.keyboard.press("Home")
        after = rows(chart)
        changed = {new["slot"] for old, new in zip(before, after, strict=False) if old != new}
        assert slot in changed, context
    page.select_option("#lab fieldset[data-slot='1'] select[data-role='loss']", "")
    assert {row["slot"] for row in rows("target")} == {1, 3, 4}
    assert rows("map") and page.locator("#lab-map-axis").inner_text() == "margin"
    assert page.faults == []
    check_accessible(page)


def test_the_page_asks_nothing_under_its_own_policy(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "lab.html"
    write_page(lab_page(None, lab_tables({"arcface": {"kind": "arcface"}})), path)
    page = browser.new_context().new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("#lab[data-ready]")
    assert faults == []
    # Whatever a page's content might try, the policy forbids requests.
    tried = "fetch('https://example.org').then(() => 'sent').catch(() => 'refused')"
    assert page.evaluate(tried) == "refused"
