"""Hooks of `mkdocs build`: add files outside docs/ that pages link to, and expand the navigation.

Pages link to results and modules as GitHub shows them, such as ``../results/tka/strip.png``. MkDocs knows
only what is in docs/, so each file that a page links to is added to the site. Pages must not load
anything from other hosts: a warning for each such page fails a strict build. Notebooks become pages with the
outputs that they were saved with.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LOG = logging.getLogger("mkdocs.plugins.dekag")
FETCHED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'> ]+)""")
LINK = re.compile(r"\]\(([^)\s#]+)")
AS_THEY_ARE = {".svg", ".png"}  # everything else is shown as plain text


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Expand patterns in the navigation and drop pages that do not exist yet."""
    named = {path for _, path in _pages(config.nav or [])}
    config.nav = _existing(config.nav or [], Path(config.docs_dir), named)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to; MkDocs reports broken links."""
    docs = Path(config.docs_dir).relative_to(ROOT).as_posix()
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            files.append(File.generated(config, page, content=_notebook_page(Path(file.abs_src_path or ""))))
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            uri = posixpath.normpath(posixpath.join(posixpath.dirname(page.src_uri), link))
            path = posixpath.normpath(posixpath.join(docs, uri))
            source = ROOT / path
            outside = uri.startswith("../") and not path.startswith("../")
            if outside and source.is_file() and source.suffix != ".md" and uri not in files.src_uris:
                # explicit, because MkDocs would take the leading dots for a hidden file
                included = InclusionLevel.INCLUDED
                added = File.generated(config, uri, abs_src_path=str(source), inclusion=included)
                added.dest_uri = path if source.suffix in AS_THEY_ARE else f"source/{path}.txt"
                files.append(added)
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Warn about resources that a page would load from other hosts."""
    for url in FETCHED.findall(output):
        LOG.warning("'%s' would fetch %s", page.file.src_uri, url)
    return output


def _notebook_page(path: Path) -> str:
    """A notebook as Markdown: text, code, printed output and pictures."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                parts.append(f'<img alt="Output of the cell above" src="data:image/png;base64,{picture}">')
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"This page is a [notebook]({path.name}).", *rest]) + "\n"


def _pages(nav: list[Any]) -> list[tuple[str | None, str]]:
    """(title, path) of every page that the navigation names."""
    found: list[tuple[str | None, str]] = []
    for entry in nav:
        for title, what in entry.items() if isinstance(entry, dict) else [(None, entry)]:
            found += _pages(what) if isinstance(what, list) else [(title, what)]
    return found


def _existing(nav: list[Any], docs: Path, named: set[str]) -> list[Any]:
    """The navigation with its patterns expanded, without missing pages and empty sections."""
    kept: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            for title, what in entry.items():
                if isinstance(what, list):
                    what = _existing(what, docs, named)
                elif not (docs / what).exists() and not (docs / what).with_suffix(".ipynb").exists():
                    continue
                if what:
                    kept.append({title: what})
        else:
            found = sorted(path.relative_to(docs).as_posix() for path in docs.glob(entry))
            kept += [path for path in found if path == entry or path not in named]
    return kept
