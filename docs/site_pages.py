"""Owns what the site has beside the pages of docs/: the README as its first page, and the pages that lie in the root.

A hook of mkdocs (see mkdocs.yml). Links are written for a reader of the checkout; here they are made to fit the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

#: Page of the site -> file in the root.
FROM_ROOT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
PAGES = {file: page for page, file in FROM_ROOT.items()}

#: The target of `[text](target)`, not of `[text](https://…)` nor `[text](#heading)`.
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s]+(?=\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages of the root."""
    for page, file in FROM_ROOT.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Let links from file to file lead from page to page, or to the repository where there is no page."""
    folder = ROOT if page.file.src_uri in FROM_ROOT else ROOT / "docs"

    def on_site(match: re.Match[str]) -> str:
        target, mark, heading = match[0].partition("#")
        path = (folder / target).resolve()
        if not path.exists():
            return match[0]  # mkdocs says that it leads nowhere
        inside = path.relative_to(ROOT).as_posix()
        site = PAGES.get(inside) or inside.removeprefix("docs/")
        known = inside in PAGES or (inside.startswith("docs/") and inside.endswith(".md"))
        return f"{site if known else f'{config.repo_url}/blob/main/{inside}'}{mark}{heading}"

    return LINK.sub(on_site, markdown)
