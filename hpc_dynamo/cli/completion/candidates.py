"""Candidates for the word at the cursor: verbs, options, overrides, values, runs and logs."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from hpc_dynamo.cli.commands import RUN_VERBS, VERBS
from hpc_dynamo.cli.completion import fields, options, runs
from hpc_dynamo.cli.help_text import TOPICS

Candidates = Iterable[tuple[str, str]]  # text, description


def print_candidates(words: Sequence[str]) -> int:
    """Print the candidates for a completion script. `words`: the shell, then its command line."""
    shell, *rest = words
    try:
        lines = _bash(*rest) if shell == "bash" else _lines(rest)
        print("\n".join(lines))
    except Exception:  # noqa: BLE001  # a traceback would destroy the line that the user edits
        return 1
    return 0


def candidates(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the candidates for the last of `words`, which follow the program's name."""
    current = words[-1]
    for text, about in _all(words):
        if text.startswith(current) and text.isprintable():  # a newline would be two candidates
            yield text, about


def _all(words: Sequence[str]) -> Candidates:
    verb, current, before = words[0], words[-1], words[1:-1]
    if len(words) == 1:
        return [*VERBS.items(), *(options.TOP_LEVEL if current.startswith("-") else ())]
    if verb not in VERBS:
        return ()
    if verb == "help":
        return [*VERBS.items(), *((topic, "") for topic in TOPICS)]
    if verb == "completion" or current.startswith("-") or options.takes_value(verb, before):
        return options.candidates(verb, before, current)
    if verb in RUN_VERBS:
        return runs.candidates(verb, before, current)
    return fields.candidates(before, current)


def _lines(words: Sequence[str]) -> Iterator[str]:
    yield from (f"{text}\t{about}" for text, about in candidates(words))


def _bash(breaks: str, line: str) -> Iterator[str]:
    """Yield what bash inserts: it replaces only the text after the last of its word breaks."""
    words, quoted = split_line(line)
    current = words[-1]
    kept = 0 if quoted else max(current.rfind(c) + 1 for c in f"{breaks} " if c in "=: ")
    for text, _ in candidates(words[1:]):
        rest = _quoted(text[kept:], quoted)
        if rest is None:
            continue
        yield rest if text.endswith((".", "=", "/")) else f"{rest} "


def _quoted(text: str, quote: str) -> str | None:
    """Return the text as bash reads it inside `quote`, or None if it cannot be written there.

    Names of files may be of other users, and must not run a command.
    """
    if not quote:
        return re.sub(r"([^\w@%+=:,./~-])", r"\\\1", text)
    if quote == "'":
        return None if "'" in text else text
    return None if "!" in text else re.sub(r'([\\$"`])', r"\\\1", text)


def split_line(line: str) -> tuple[list[str], str]:
    """Split a line up to the cursor as a shell does. Returns also the quote that is open."""
    for quote in ("", "'", '"'):
        with suppress(ValueError):
            words = shlex.split(line + quote)
            return (words if quote or not line[-1:].isspace() else [*words, ""]), quote
    return [""], ""
