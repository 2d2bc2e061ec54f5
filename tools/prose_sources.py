"""Text for the prose check: paragraphs of Markdown, docstrings, comments and messages of Python."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CODE = "CODE"  # replaces code within a sentence; counts as one word
IGNORE = re.compile(r"(?:# |<!-- )prose: ignore\b(?: \((?P<reason>[^)]+)\))?")
TOOLS = re.compile(r"#\s*(noqa|type:|pragma|mypy:|ruff:|pyright:|!|fmt:|prose:)")
CODE_LIKE = re.compile(r"[\w.-]*[_/=<>{}\\$@#*|~^+]\S*|\w+\.\w\S*|\w+\(\S*|(?<!\w)--?\w\S*")
QUOTED = re.compile(r"\"[^\"\n]{1,80}\"|“[^”\n]{1,80}”")
WORDS = re.compile(r"[A-Za-z]{2,}")
STRING_WORDS = 3


@dataclass(frozen=True)
class Chunk:
    """One paragraph, docstring, comment or string, with code replaced by `CODE`."""

    line: int  # first line in the file, from 1
    end: int  # last line
    kind: str  # paragraph, heading, cell, docstring, comment, trailing, help or string
    text: str


def chunks(path: Path, source: str) -> list[Chunk]:
    """Return the text of a file that the rules apply to. The suffix selects the format."""
    if path.suffix == ".md":
        return list(markdown(source))
    if path.suffix == ".py":
        return [*docstrings_and_strings(source), *python_comments(source)]
    return list(hash_comments(source))


def ignored_lines(source: str) -> tuple[set[int], list[int]]:
    """Return the lines covered by an exception with a reason, and exceptions without one.

    An exception covers its own line and the next one.
    """
    covered: set[int] = set()
    bare = []
    for number, line in enumerate(source.splitlines(), 1):
        if found := IGNORE.search(line):
            covered |= {number, number + 1}
            if not found["reason"]:
                bare.append(number)
    return covered, bare


def without_code(text: str) -> str:
    """Replace identifiers, options, paths and short quotations by `CODE`, keep punctuation."""

    def replace(found: re.Match[str]) -> str:
        token = found[0]
        kept = token.rstrip(".,;:!?)")
        return CODE + token[len(kept) :] if WORDS.search(kept) else token

    return CODE_LIKE.sub(replace, QUOTED.sub(CODE, re.sub(r"`+[^`]*`+", CODE, text)))


def markdown(source: str) -> Iterator[Chunk]:
    """Yield headings, paragraphs, list items and table cells; skip code blocks and HTML."""
    block: list[str] = []
    start, fence = 1, ""
    source = re.sub(r"<!--.*?-->", lambda m: "\n" * m[0].count("\n"), source, flags=re.DOTALL)
    for number, line in enumerate([*source.splitlines(), ""], 1):
        text = line.strip()
        opens = re.match(r"(`{3,}|~{3,})", text)
        if fence or opens or not text or re.match(r"[#|]|[-*+] |\d+\. |<|\[[^]]+\]: ", text):
            if block:
                yield _paragraph(start, block)
            block = []
        if fence:
            fence = "" if text.startswith(fence) else fence
        elif opens:
            fence = opens[1]
        elif text.startswith("#"):
            yield Chunk(number, number, "heading", _plain(text.lstrip("# ")))
        elif text.startswith("|"):
            for cell in text.strip("|").split("|"):
                yield Chunk(number, number, "cell", _plain(cell.strip()))
        elif text and not re.match(r"<|\[[^]]+\]: ", text):
            start = start if block else number
            block.append(re.sub(r"^([-*+] |\d+\. |> ?)", "", text))


def _paragraph(start: int, lines: list[str]) -> Chunk:
    return Chunk(start, start + len(lines) - 1, "paragraph", _plain("\n".join(lines)))


def _plain(text: str) -> str:
    """Drop emphasis and the targets of links, then code."""
    text = re.sub(r"`+[^`]*`+", CODE, text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    return without_code(text.replace("**", "").replace("*", ""))


def docstrings_and_strings(source: str) -> Iterator[Chunk]:
    """Yield docstrings and all string literals of three words or more."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                first = node.body[0]
                assert isinstance(first, ast.Expr)
                skipped.add(id(first.value))
                for paragraph, line in _paragraphs(text, first.lineno):
                    end = line + paragraph.count("\n")
                    yield Chunk(line, end, "docstring", without_code(paragraph))
        elif isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in ast.walk(node) if part is not node}
            parts = [_constant(part) for part in node.values]
            yield from _string(node, "".join(parts))
        elif id(node) not in skipped and isinstance(node, ast.Constant):
            yield from _string(node, node.value if isinstance(node.value, str) else "")


def _constant(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else CODE


def _string(node: ast.expr, text: str) -> Iterator[Chunk]:
    """Yield the literal if it reads as a message, not as data, a pattern or a template."""
    code = re.search(r"\\|\{%|<\||\(\?|^\s*[\[{<]", text)
    tokens = text.split()
    options = sum(bool(re.search(r"\w[-_./]\w|=", token)) for token in tokens) * 2 > len(tokens)
    if not code and not options and len(tokens) > 1 and len(WORDS.findall(text)) >= STRING_WORDS:
        yield Chunk(node.lineno, node.end_lineno or node.lineno, "string", without_code(text))


def _paragraphs(text: str, line: int) -> Iterator[tuple[str, int]]:
    """Split a docstring at blank lines; skip indented blocks, which are examples or tables."""
    block: list[str] = []
    start = line
    for number, each in enumerate([*text.splitlines(), ""], line):
        item = re.match(r"[-*] |\w+: ", each)
        if block and (not each.strip() or item or re.match(r" {4,}\S|\|", each)):
            yield "\n".join(block), start
            block = []
        if each.strip() and not re.match(r" {4,}\S|\|", each):
            start = start if block else number
            block.append(each.strip())


def python_comments(source: str) -> Iterator[Chunk]:
    """Yield blocks of whole-line comments, and each comment at the end of a line of code."""
    block: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or TOOLS.match(token.string):
            continue
        line, text = token.start[0], token.string.lstrip("# ")
        whole = not token.line[: token.start[1]].strip()
        if block and (not whole or line != block[-1][0] + 1):
            yield _comment(block)
            block = []
        if whole:
            block.append((line, text))
        else:
            yield Chunk(line, line, "trailing", without_code(text))
    if block:
        yield _comment(block)


def hash_comments(source: str) -> Iterator[Chunk]:
    """Yield comments of YAML, TOML, shell files and Makefiles, and the help of make targets."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*source.splitlines(), ""], 1):
        found = re.match(r"(?P<code>.*?)(?:^|(?<=\s))(?P<mark>##?) (?P<text>\S.*)", line)
        whole = found is not None and not found["code"].strip()
        if block and not whole:
            yield _comment(block)
            block = []
        if found and not TOOLS.match("# " + found["text"]):
            if whole:
                block.append((number, found["text"]))
            else:
                kind = "help" if found["mark"] == "##" else "trailing"
                yield Chunk(number, number, kind, without_code(found["text"]))


def _comment(block: list[tuple[int, str]]) -> Chunk:
    text = "\n".join(text for _, text in block)
    return Chunk(block[0][0], block[-1][0], "comment", without_code(text))
