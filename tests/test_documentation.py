"""Documentation that cannot rot: its code runs, its losses are the registered ones."""

from __future__ import annotations

import glob
import importlib.util
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from margrave.cli import main
from margrave.losses import LOSSES, create

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    scope: dict = {}
    blocks = re.findall(r"```(sh|python)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for language, block in blocks:
        if language == "python":
            exec(compile(block, page.name, "exec"), scope)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                run_command(line, monkeypatch)


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of a shell, in this process: importing torch anew for each would take minutes."""
    command, _, alternative = line.partition("||")
    words = [match for word in shlex.split(command) for match in sorted(glob.glob(word)) or [word]]
    assert words[0] == "margrave", line
    monkeypatch.setattr(sys, "argv", words)
    status: object = 0
    # The launcher of several processes leaves handlers of its own behind.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert status == 0 or alternative.strip() == "true", f"{line} ended with {status}"


def test_generated_pages_are_up_to_date() -> None:
    place = ROOT / "docs" / "reference" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", place)
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        written = (place.parent / name).read_text()
        assert written == text, f"run python docs/reference/generate.py: {name} is out of date"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in TUTORIALS],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    scope: dict = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), scope)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_site_builds_without_a_dead_link_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("index.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = re.findall(r"<(?:script|img)[^>]* src=\"([^\"]*)", page.read_text())
        loaded += re.findall(r"<link[^>]*stylesheet[^>]* href=\"([^\"]*)", page.read_text())
        assert not [url for url in loaded if "//" in url], page


@pytest.mark.parametrize("kind", list(LOSSES))
def test_every_loss_is_documented_with_its_settings(kind: str) -> None:
    text = (ROOT / "docs" / "reference" / "losses.md").read_text()
    assert f"[`{kind}`](#{kind})" in text
    section = text.split(f"\n## {kind}\n")[1].split("\n## ")[0]
    assert "Source:" in section
    for name, value in create({"kind": kind}).settings().items():
        if name in ("straight_through", "ignore_negatives_above"):
            continue
        assert f"`{name}`" in section
        if isinstance(value, int | float | str):
            assert f"`{name}` {value}" in section


def test_commands_of_the_documentation_exist() -> None:
    from margrave.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for name in re.findall(r"^margrave ([a-z]+)", block, flags=re.MULTILINE):
                assert name in known, f"{page.name}: margrave {name}"


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(example: Path) -> None:
    subprocess.run([sys.executable, str(example)], check=True, cwd=example.parent)


def test_the_loss_of_ones_own_is_short() -> None:
    assert len((ROOT / "examples" / "my_loss.py").read_text().splitlines()) <= 30
