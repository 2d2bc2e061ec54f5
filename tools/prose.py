#!/usr/bin/env python3
"""Prose check: `python tools/prose.py [--count] [PATH…]`. Standard library only.

Checks Markdown pages, docstrings, comments and messages against the word list in `prose.toml`, the
length of sentences, the first word of docstrings, and missing docstrings. It prints one line per
finding and exits with 1 if there is any.

`# prose: ignore (reason)`, in Markdown `<!-- prose: ignore (reason) -->`, exempts its own line and
the next one. `--count` prints the number of findings per rule.
"""

import argparse
import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a script, Python finds only this folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.prose_sources import Chunk, chunks, ignored_lines

DEFAULT = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "Makefile",
    "pyproject.toml", "mkdocs.yml", ".pre-commit-config.yaml", ".github", "docs", "hpc_dynamo",
    "conf", "tests", "benchmarks", "tools", "examples",
)  # fmt: skip
SUFFIXES = {".md", ".py", ".yaml", ".yml", ".toml"}
DOCSTRINGS_OF = ("hpc_dynamo",)  # public names in these folders need a docstring
STRINGS_OF = ("hpc_dynamo", "benchmarks", "examples")  # strings in tests are data, not messages
TABLE = tomllib.loads(Path(__file__).with_name("prose.toml").read_text(encoding="utf-8"))
WORDS = {
    name: (re.compile(rule["find"], re.IGNORECASE | re.MULTILINE), rule["write"])
    for name, rule in TABLE["words"].items()
}
SENTENCE_END = re.compile(r"[.!?:;]+[\"')\]]*\s+|\n\s*\n")
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, order=True)
class Finding:
    """One violation: where it is, the rule, and what to write instead."""

    path: str
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: [{self.rule}] {self.message}"


def check(path: Path, source: str) -> list[Finding]:
    """Return all findings in one file. `path` is relative to the root of the repository."""
    covered, bare = ignored_lines(source)
    lines = source.splitlines()
    found = [Finding(str(path), n, "ignore", "an exception needs a (reason)") for n in bare]
    for chunk in chunks(path, source):
        if chunk.kind == "string" and path.parts[0] not in STRINGS_OF:
            continue
        for rule, match, message in violations(chunk):
            line = _line_of(match, chunk, lines)
            if line not in covered and chunk.line not in covered:
                found.append(Finding(str(path), line, rule, message))
    if path.suffix == ".py":
        for line, rule, message in definitions(path, ast.parse(source)):
            if line not in covered:
                found.append(Finding(str(path), line, rule, message))
    return sorted(found)


def violations(chunk: Chunk) -> Iterator[tuple[str, str, str]]:
    """Yield rule, offending text and message for one chunk."""
    for name, (pattern, write) in WORDS.items():
        for match in pattern.finditer(chunk.text):
            quoted = " ".join(match[0].split())
            yield name, match[0], f'found "{quoted}"; write: {write}'
    limits, firsts = TABLE["limits"], TABLE["first_words"]
    first = re.match(r"\w+", chunk.text)
    if first and chunk.kind in ("docstring", "trailing") and first[0].title() in firsts["find"]:
        rule = "first-word" if chunk.kind == "docstring" else "first-word-comment"
        yield rule, first[0], f'starts with "{first[0]}"; {firsts["write"]}'
    for sentence in SENTENCE_END.split(chunk.text):
        count = len(re.findall(r"[\w'-]*[A-Za-z0-9][\w'.,-]*", sentence))
        if chunk.kind == "trailing" and count > limits["trailing_comment_words"]:
            yield "trailing-comment", sentence, f"{count} words; put the comment above the code"
        elif count > limits["sentence_words"]:
            start = " ".join(sentence.split()[:6])
            message = f'{count} words in "{start} …"; at most {limits["sentence_words"]}'
            yield "long-sentence", sentence, message


def _line_of(text: str, chunk: Chunk, lines: list[str]) -> int:
    """Return the line within the chunk that has the first words of the text."""
    words = [word for word in re.split(r"\bCODE\b|\s+", text) if word][:2]
    for start in (" ".join(words), *words[:1]):
        for number in range(chunk.line, min(chunk.end, len(lines)) + 1):
            if start and start.lower() in lines[number - 1].lower():
                return number
    return chunk.line


def definitions(path: Path, tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Yield missing docstrings of public names, and names of tests with ruled-out words."""
    if path.parts[0] in DOCSTRINGS_OF:
        if tree.body and not ast.get_docstring(tree):
            yield 1, "missing-docstring", "the module has no docstring"
        for node in _definitions(tree):
            if not ast.get_docstring(node):
                yield node.lineno, "missing-docstring", f"`{node.name}` has no docstring"
    for test in (node for node in ast.walk(tree) if isinstance(node, Definition)):
        if test.name.startswith("test_"):
            for word in TABLE["test_names"]["find"]:
                if f"_{word}_" in f"{test.name}_":
                    message = (
                        f"found `{word}` in `{test.name}`; write: {TABLE['test_names']['write']}"
                    )
                    yield test.lineno, "test-name", message


def _definitions(scope: ast.Module | ast.ClassDef) -> Iterator[ast.ClassDef | Definition]:
    """Yield the classes and functions of a scope that need a docstring."""
    for node in scope.body:
        public = not getattr(node, "name", "_").startswith("_")
        if isinstance(node, ast.ClassDef):
            if public or any("Struct" in ast.unparse(base) for base in node.bases):
                yield node
            if public:
                yield from _definitions(node)
        elif isinstance(node, Definition) and public:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            overloaded = any("overload" in ast.unparse(each) for each in node.decorator_list)
            if lines >= TABLE["limits"]["docstring_lines"] and not overloaded:
                yield node


def files(roots: list[Path]) -> Iterator[Path]:
    """Yield all files to check below the given files and folders."""
    for root in roots:
        if root.is_file():
            yield root
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[1:])
            if path.suffix in SUFFIXES and path.is_file() and not hidden:
                yield path


def main(arguments: list[str] | None = None) -> int:
    """Check the given paths, by default the whole repository in the current folder."""
    parser = argparse.ArgumentParser(prog="prose.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    parser.add_argument("--count", action="store_true", help="print the findings per rule only")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="RULE", help="leave out a rule"
    )
    args: Any = parser.parse_args(arguments)
    roots = args.paths or [Path(each) for each in DEFAULT]
    found: list[Finding] = []
    for path in files([root.resolve().relative_to(Path.cwd()) for root in roots]):
        found += check(path, path.read_text(encoding="utf-8"))
    found = [each for each in found if each.rule not in args.skip]
    if args.count:
        for rule, count in Counter(each.rule for each in found).most_common():
            print(f"{count:6} {rule}")
    else:
        print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(found)} findings", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
