"""Consoles of the command line: as wide as the terminal, without a limit in pipes and files."""

import codecs
import io
import os
from collections.abc import Iterable
from typing import IO

from rich.console import (
    Console,
    ConsoleDimensions,
    ConsoleOptions,
    RenderableType,
    RenderResult,
)
from rich.segment import Segment

from hpc_dynamo.printable import escape_controls

NO_LIMIT = 1_000_000  # columns


class SafeConsole(Console):
    """Console that escapes control characters in texts of files, engines and models."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable. rich's own control codes stay."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(escape_controls(text), style)


class UnlimitedConsole(SafeConsole):
    """Console that cuts and wraps nothing if its output is not a terminal."""

    @property
    def size(self) -> ConsoleDimensions:
        """Return the terminal's size. In a pipe, `COLUMNS` and stdin's terminal do not count."""
        return super().size if self.file.isatty() else ConsoleDimensions(NO_LIMIT, 25)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new


class FoldedLines:
    """Wraps text that is redrawn in place: its lines would otherwise be cropped at the edge."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._content, options.update(no_wrap=False, overflow="fold"))


def plain_console(*, stderr: bool = False) -> UnlimitedConsole:
    """Return a console for plain text: paths and texts of users are not markup."""
    return UnlimitedConsole(stderr=stderr, soft_wrap=True, highlight=False, emoji=False)


def can_redraw(file: IO[str]) -> bool:
    """Return True if control codes move a cursor: not in pipes, files, notebooks and Emacs.

    A notebook gives its commands a pseudo terminal and prints their whole output.
    """
    notebook = "JPY_PARENT_PID" in os.environ
    return file.isatty() and not notebook and os.environ.get("TERM") not in ("dumb", "unknown")


ASCII = {"…": "...", "µ": "u", "─": "-", "━": "-", "»": '"', "«": '"'}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(ASCII.get(sign, "?") for sign in signs), error.end


def replace_unencodable(*files: object) -> None:
    """Make files replace characters that their encoding lacks, such as `…` in Latin-1."""
    codecs.register_error("hpc_dynamo_ascii", _in_ascii)
    for file in files:
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="hpc_dynamo_ascii")


OUT, ERR = plain_console(), plain_console(stderr=True)


def print_line(text: str) -> None:
    """Print a line on stdout as it is: paths and texts of users are not markup."""
    OUT.print(text, markup=False)
