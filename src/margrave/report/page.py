"""Render a report page as one HTML file that makes no network requests."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from margrave.files import atomic_write
from margrave.report.contents import Chart, Lab, Page
from margrave.version import __version__

JPEG_QUALITY = 80
MISSING_EXTRA = "reports need Jinja2, Altair and vl-convert: install margrave[report]"


def write_page(page: Page, path: Path) -> None:
    """Write a page as one self-contained HTML file, atomically.

    Raises:
        ValueError: the extra ``report`` is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ValueError(MISSING_EXTRA) from error
    environment = Environment(
        loader=PackageLoader("margrave.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = anchor
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    environment.filters["jpeg"] = data_url
    environment.filters["script_json"] = script_json
    environment.tests["numeric"] = is_numeric
    blocks = [block for section in page.sections for block in section.blocks]
    has_charts = any(isinstance(block, Chart | Lab) for block in blocks)
    text = environment.get_template("page.html").render(
        page=page,
        sections=[section for section in page.sections if section.blocks],
        style=_read_asset("page.css"),
        script=_read_asset("page.js") if has_charts else "",
        lab_script=_read_asset("lab.js") if any(isinstance(block, Lab) for block in blocks) else "",
        vega=vega_script() if has_charts else "",
        version=__version__,
        number=_chart_numbers().__next__,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def _read_asset(name: str) -> str:
    return resources.files("margrave.report").joinpath("templates", name).read_text("utf-8")


def _chart_numbers() -> Iterator[int]:
    """Yield 1, 2, 3, …: the numbers in the HTML ids of the page's charts."""
    number = 0
    while True:
        number += 1
        yield number


@cache
def vega_script() -> str:
    """Vega, Vega-Lite and vega-embed as one script, which defines ``window.vegaEmbed``.

    Raises:
        ValueError: the extra ``report`` is not installed.
    """
    try:
        import altair
        import vl_convert
    except ImportError as error:
        raise ValueError(MISSING_EXTRA) from error
    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    # A string that contains </script> would end the script element.
    return re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE)


def script_json(value: Any) -> str:
    """JSON that is safe in a script element, because it contains no ``<``.

    >>> script_json({"a": "</script>"})
    '{"a":"\\\\u003c/script>"}'
    """
    # Older JavaScript allows no U+2028 and U+2029 (line separators) in strings.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def data_url(image: np.ndarray) -> str:
    """An RGB image as a JPEG in a ``data:`` URL."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), parameters)[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def anchor(title: str) -> str:
    """The HTML id of a section with this title, for links within the page.

    >>> anchor("Scores: genuine and impostor")
    'section-scores-genuine-and-impostor'
    """
    return "section-" + re.sub(r"\W+", "-", title.lower()).strip("-")


def is_numeric(cell: str) -> bool:
    """Whether a table cell holds a number, a range or a dash; the page right-aligns such cells.

    >>> is_numeric("98.2 % *"), is_numeric("1 to 2"), is_numeric("arcface"), is_numeric("< 0.001")
    (True, True, False, True)
    """
    return bool(
        re.fullmatch(r"[<+−-]? ?[\d.,]+( %)?( \*)?( (to|of) [+−-]?[\d.,]+( %)?)?|-|–", cell)
    )
