"""Commands shown in help texts and documents."""

import re
import shlex
from collections.abc import Iterator

START = r"(?:^|(?P<inside>\$\()|[|;]|&&)\s*(?:\w+=\S+\s+)*"


def shown_commands(text: str, program: str = "hpc-dynamo") -> Iterator[list[str]]:
    """Yield the arguments of each command of a program in lines of shell.

    A command may follow a pipe or stand in `$(…)`. Comments and redirections are removed. Prose
    that names the program in the middle of a line is not a command.
    """
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for found in re.finditer(rf"{START}{program}(?P<words>\s.*|$)", line):
            words = found["words"].partition(")")[0] if found["inside"] else found["words"]
            yield list(_until_end(words))


def _until_end(text: str) -> Iterator[str]:
    """Yield the words of a command up to a pipe, a redirection or the next command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    for word in lexer:
        if word[0] in "|;&<>":
            return
        yield word
