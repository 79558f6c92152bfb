"""The page, in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fake_service import Server, png
from headless_browser import AXE, OVERFLOW, check_accessible

from margrave.serving import KeyFile

pytestmark = pytest.mark.service


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_works(
    start: Callable[..., Server], browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    server = start()
    files = {}
    for name, content in (("a", png(1)), ("b", png(1, 1)), ("c", png(2))):
        files[name] = tmp_path / f"{name}.png"
        files[name].write_bytes(content)
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, bypass_csp=bool(AXE)
    )
    page = context.new_page()
    faults: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(server.address)
    assert page.locator("#verify-go").is_disabled()
    page.fill("#key", server.token)
    page.keyboard.press("Enter")
    page.wait_for_selector("#access-state:has-text('accepted')")
    assert page.locator("#far option").count() == 2

    page.set_input_files("#file-first", files["a"])
    page.set_input_files("#file-second", files["b"])
    page.click("#verify-go")
    page.wait_for_selector(".verdict.good:has-text('Same person')")
    assert page.locator(".crops img").count() == 2
    check_accessible(page)
    page.set_input_files("#file-second", files["c"])
    page.select_option("#far", "0.01")
    page.click("#verify-go")
    page.wait_for_selector(".verdict.bad:has-text('Different people')")

    page.focus("#tab-verify")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#people-title:has-text('People (0)')")
    page.set_input_files("#file-enroll", files["a"])
    page.fill("#name", "Ann <b>Lee</b>")
    page.click("#enroll-go")
    page.wait_for_selector("#people li:has-text('Ann <b>Lee</b>')")
    check_accessible(page)

    page.click("#tab-identify")
    page.set_input_files("#file-probe", files["b"])
    page.select_option("#faces", "all")
    page.click("#identify-go")
    page.wait_for_selector("#identify-result td strong:has-text('Ann <b>Lee</b>')")
    check_accessible(page)

    page.click("#tab-gallery")
    page.click("#people li button")
    check_accessible(page)
    page.click("#confirm-yes")
    page.wait_for_selector("#gallery-result:has-text('erased')")
    page.wait_for_selector("#people-title:has-text('People (0)')")
    assert page.evaluate(OVERFLOW) == 0
    assert faults == []
    outside = [url for url in requests if not url.startswith((server.address, "data:", "blob:"))]
    assert outside == []


@pytest.fixture
def page(start: Callable[..., Server], browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page with an accepted key, on a phone, under its own policy."""
    server = start()
    opened = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    opened.goto(server.address)
    opened.fill("#key", server.token)
    opened.keyboard.press("Enter")
    opened.wait_for_selector("#access-state:has-text('accepted')")
    opened.server = server
    for name, content in (("a", png(1)), ("b", png(1, 1))):
        (tmp_path / f"{name}.png").write_bytes(content)
    yield opened


def test_long_names_fit_a_phone(page: Any, tmp_path: Path) -> None:
    long = "Maximilian" * 40
    answer = httpx.post(
        f"{page.server.address}/v1/people",
        headers=page.server.header,
        files={"images": png(1)},
        data={"name": long},
    )
    assert answer.status_code == 201
    page.click("#tab-identify")
    page.set_input_files("#file-probe", tmp_path / "b.png")
    page.click("#identify-go")
    page.wait_for_selector(".candidates .number")
    assert page.evaluate(OVERFLOW) == 0
    number = page.locator(".candidates .number").bounding_box()
    assert number["x"] + number["width"] <= 390 and number["height"] < 40
    page.click("#tab-gallery")
    page.wait_for_selector("#people li")
    assert page.evaluate(OVERFLOW) == 0
    button = page.locator("#people li button").bounding_box()
    assert button["x"] + button["width"] <= 390 and button["width"] > 60
    page.click("#people li button")
    assert page.evaluate(OVERFLOW) == 0


def test_what_color_says_is_said_without_it(page: Any, tmp_path: Path) -> None:
    verdicts = []
    for second in ("b", "c"):
        (tmp_path / "c.png").write_bytes(png(2))
        page.set_input_files("#file-first", tmp_path / "a.png")
        page.set_input_files("#file-second", tmp_path / f"{second}.png")
        page.click("#verify-go")
        page.wait_for_selector(".verdict")
        sign = "getComputedStyle(document.querySelector('.verdict'), '::before').content"
        verdicts.append((page.locator(".verdict").inner_text(), page.evaluate(sign)[:2]))
    assert len(set(verdicts)) == 2 and len({sign for _, sign in verdicts}) == 2
    fills = [
        page.evaluate(f"getComputedStyle(document.querySelector('.{kind}')).fill")
        for kind in ("genuine", "impostors")
    ]
    assert "stripes" in fills[1] and "stripes" not in fills[0]
    assert "striped" in page.locator("#distribution-caption").inner_text()


def test_the_focus_is_seen(page: Any) -> None:
    seen = set()
    page.focus("#key")
    for _ in range(12):
        page.keyboard.press("Tab")
        name, style, width = page.evaluate(
            """() => {
              const at = document.activeElement, style = getComputedStyle(at);
              return [at.id || at.textContent, style.outlineStyle, parseFloat(style.outlineWidth)];
            }"""
        )
        if name and "Margrave" not in name:
            seen.add(name)
            assert style != "none" and width >= 2, name
    assert {"Use key", "tab-verify", "Choose a file", "Camera", "far"} <= seen


def test_a_refused_key_is_not_kept(page: Any) -> None:
    kept = "sessionStorage.getItem('key')"
    assert page.evaluate(kept) == page.server.token
    keys = KeyFile(page.server.folder / "keys.json")
    keys.revoke(next(iter(keys.keys())))
    page.click("#tab-gallery")
    page.wait_for_selector("#access-state:has-text('refused')")
    assert page.evaluate(kept) is None
    page.fill("#key", "mgv_wrong")
    page.click("#access button")
    page.wait_for_selector("#access-state:has-text('valid API key')")
    assert page.evaluate(kept) is None


def test_the_policy_holds(page: Any, tmp_path: Path) -> None:
    """Neither a script in the page nor a request to elsewhere gets through."""
    page.evaluate(
        """() => {
          window.violations = [];
          addEventListener("securitypolicyviolation",
            (event) => violations.push(event.effectiveDirective));
          const add = (tag, attributes, text) => {
            const made = Object.assign(document.createElement(tag), attributes);
            made.textContent = text;
            document.body.append(made);
          };
          add("script", {}, "window.broken = true");
          add("script", { src: "https://example.invalid/a.js" }, "");
          add("img", { src: "https://example.invalid/a.png" }, "");
          add("style", {}, "body { color: red }");
          const link = document.createElement("a");
          link.setAttribute("onclick", "window.broken = true");
          document.body.append(link);
          link.click();
          fetch("https://example.invalid/").catch(() => {});
        }"""
    )
    page.wait_for_function("violations.length >= 6")
    assert sorted(page.evaluate("violations")) == [
        "connect-src",
        "img-src",
        "script-src-attr",
        "script-src-elem",
        "script-src-elem",
        "style-src-elem",
    ]
    assert page.evaluate("window.broken") is None
    # And the page works under it.
    page.evaluate("violations.length = 0")
    page.set_input_files("#file-first", tmp_path / "a.png")
    page.set_input_files("#file-second", tmp_path / "b.png")
    page.click("#verify-go")
    page.wait_for_selector(".verdict.good")
    assert page.evaluate("violations") == []
