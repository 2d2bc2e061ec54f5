"""Pages of docs/: generated pages are current, and relative links in all pages lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

from tools import reference

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    path
    for path in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    if (ROOT / path).exists()
]


@pytest.mark.parametrize("path", [path.name for path, _ in reference.pages()])
def test_generated_reference_page_is_current(path: str) -> None:
    assert path not in {page.name for page in reference.stale()}, "run `make docs`"


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub and MkDocs give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{page}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/development/")])
def test_files_named_on_development_pages_exist(page: str) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.py)?)`", (ROOT / page).read_text())
    for path in named:
        found = [ROOT / path, ROOT / "hpc_dynamo" / path, ROOT / "hpc_dynamo" / f"{path}.py"]
        assert any(each.exists() for each in found), f"{page}: {path}"
