"""Hooks of `make docs`: README and CONTRIBUTING are pages too, and links to code lose their target.

The pages lie in a repository, where they link to files that the site does not have.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in PAGES.items():
        text = relink((ROOT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page's links to what the site calls these files."""
    del config, files
    name = page.file.src_uri
    return markdown if name in PAGES.values() else relink(markdown, f"docs/{name}", name)


def relink(markdown: str, source: str, page: str) -> str:
    """Links within docs/ relative to the page; others as text alone.

    Args:
        markdown: a page's text.
        source: its path within the repository.
        page: its path within the site.
    """

    def rewritten(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return link[0]  # mkdocs says that it does not exist.
        path = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
        if not path or path.endswith((".csv", ".py")):
            return text
        return f"{image}[{text}]({posixpath.relpath(path, posixpath.dirname(page))}{anchor})"

    return LINK.sub(rewritten, markdown)
