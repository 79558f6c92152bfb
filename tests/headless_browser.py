"""A headless browser, and the check that a page is accessible."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
REQUIRED = bool(os.environ.get("MARGRAVE_REQUIRE_SHARED"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# axe-core's script, from the npm registry; .ci/run fetches it.
AXE = os.environ.get("MARGRAVE_AXE", "")
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']}"


def open_browser() -> Iterator[Any]:
    """Chromium; the test is skipped where it is missing."""
    if CHROMIUM is None or find_spec("playwright") is None:
        assert not REQUIRED, "chromium and playwright are required here"
        pytest.skip("no chromium or no playwright here")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


def check_accessible(page: Any) -> None:
    """No violation of WCAG 2 A and AA, where axe-core is at hand."""
    if not AXE:
        assert not REQUIRED, "MARGRAVE_AXE must name axe-core's axe.min.js here"
        return
    page.evaluate(Path(AXE).read_text())
    found = page.evaluate(f"axe.run(document, {RULES})")["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
