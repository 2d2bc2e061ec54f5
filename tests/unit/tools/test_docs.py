"""Pages of docs/: generated pages are current, and relative links in all pages lead somewhere."""

import re
import subprocess
from pathlib import Path
from typing import get_origin

import pytest

from hpc_dynamo.config import Config, schema_fields
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


@pytest.mark.parametrize("page", PAGES)
def test_files_named_on_pages_exist(page: str) -> None:
    # Pages for developers name modules without the package.
    inside = page.startswith("docs/development/")
    folders = r"(?:[a-z_]+/)+" if inside else r"(?:hpc_dynamo|tests|benchmarks|conf)/(?:[a-z_]+/)*"
    named = re.findall(rf"`({folders}[a-z_]*(?:\.py)?)`", (ROOT / page).read_text())
    for path in named:
        found = [ROOT / path, ROOT / "hpc_dynamo" / path, ROOT / "hpc_dynamo" / f"{path}.py"]
        assert any(each.exists() for each in found), f"{page}: {path}"


MAPPINGS = {field.name for field in schema_fields(Config) if get_origin(field.type) is dict}
FIELDS = [field.name for field in schema_fields(Config)]
SECTIONS = {name.partition(".")[0] for name in FIELDS if "." in name}
PLACEHOLDER = r"[\w-]+"


def is_field(name: str) -> bool:
    """Return True for a field, a section, or a key of a mapping."""
    for each in FIELDS:
        pattern = re.escape(each).replace(r"\*", PLACEHOLDER)
        if re.fullmatch(pattern, name) or re.match(rf"{re.escape(name)}\.", each):
            return True
        if each in MAPPINGS and re.match(rf"{pattern}\.", name):
            return True
    return False


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_fields_named_on_pages_exist_under_their_current_name(page: str) -> None:
    text = (ROOT / page).read_text()
    text = text.partition("\n## Old names")[0]
    for span in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]\w*)+)(?![\w./(-])", span):
            if name.partition(".")[0] in SECTIONS and not re.search(
                r"\.(md|py|json\w*|yaml)$", name
            ):
                assert is_field(name), f"{page}: {name} is not a field"


def test_readme_lists_every_page_of_the_docs_in_at_most_120_lines() -> None:
    text = (ROOT / "README.md").read_text()
    pages = {page for page in PAGES if page.startswith("docs/") and page != "docs/index.md"}
    assert {page for page in pages if f"]({page})" not in text} == set()
    assert len(text.splitlines()) <= 120


def test_pages_named_in_code_exist() -> None:
    """Recipes also name pages of other projects as their sources."""
    pattern = r"(docs|benchmarks/results)/[a-z/-]+\.md"
    places = ("hpc_dynamo", "conf", ":!conf/recipe")
    command = ["git", "grep", "-hoE", pattern, "--", *places]
    named = set(subprocess.check_output(command, text=True, cwd=ROOT).split())
    assert {page for page in named if not (ROOT / page).exists()} == set()
