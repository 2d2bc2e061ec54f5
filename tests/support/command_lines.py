"""Commands shown in help texts and documents."""

import re
import shlex
from collections.abc import Iterator


def shown_commands(text: str, program: str = "hpc-dynamo") -> Iterator[list[str]]:
    """Yield the arguments of each command of a program in lines of shell.

    A command may follow a pipe or stand in `$(…)`. Prose that names the program in backquotes is
    not a command. Comments and redirections are removed.
    """
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for found in re.finditer(rf"(?:^|[|;(]|&&)\s*(?:\w+=\S+\s+)*{program}\s+(.*)", line):
            words = shlex.split(found[1], comments=True)
            yield list(_until_end(words))


def _until_end(words: list[str]) -> Iterator[str]:
    for word in words:
        if word in ("|", ">", ">>", "2>", "&", "&&", ";") or word.startswith(">"):
            return
        yield word.rstrip(");") if word.endswith((")", ";")) and "(" not in word else word
