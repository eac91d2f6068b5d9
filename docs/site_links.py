"""A hook of mkdocs.yml: files outside docs/ that pages link to are part of the site too.

Links are written as GitHub needs them (`../checkpoints/MODEL_CARD.md`). The site has the repository's folders, with the
pages of docs/ at its root.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")


def in_repository(page: str) -> str:
    """Where a file of the site is in the repository."""
    return f"docs/{page}" if (ROOT / "docs" / page).is_file() else page


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add every file outside docs/ that a page links to, and what those link to in turn."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        source = in_repository(waiting.pop())
        for target in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if path.startswith("docs/") or not (ROOT / path).is_file() or files.get_file_from_path(path):
                continue
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from places in the repository into places in the site."""
    folder = posixpath.dirname(in_repository(page.file.src_uri))

    def moved(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[0])).removeprefix("docs/")
        return posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)
