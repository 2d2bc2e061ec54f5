"""MkDocs hook: pages outside docs/ become part of the site, and links to them work.

Links are written as GitHub resolves them (`../../benchmarks/results/kv.md`). MkDocs knows only
files below docs/, so each file of `OUTSIDE` gets an address on the site and links are rewritten.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)]*)?\)")


def outside() -> dict[str, str]:
    """Return the address on the site of each file outside docs/, by its path in the repository."""
    results = sorted((ROOT / "benchmarks/results").iterdir())
    pages = {f"benchmarks/results/{path.name}": f"benchmarks/{path.name}" for path in results}
    projects = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
    return pages | {name: name.lower() for name in projects if (ROOT / name).exists()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ to the site."""
    for path, address in outside().items():
        files.append(File.generated(config, address, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between docs/ and the files outside it."""
    address = page.file.src_uri
    moved = outside()
    source = {on_site: path for path, on_site in moved.items()}.get(address, f"docs/{address}")

    def rewrite(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        on_site = moved.get(target, target.removeprefix("docs/"))
        if source.startswith("docs/") and target not in moved:
            return found[0]
        relative = os.path.relpath(on_site, posixpath.dirname(address) or ".")
        return f"{found[1]}{relative}{found[3] or ''})"

    return LINK.sub(rewrite, markdown)
