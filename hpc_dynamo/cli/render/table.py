"""Tables that cut no cell: a table that is too wide for the console is printed as lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

HOST_WIDTH, TEXT_WIDTH = 8, 30  # minimum widths of foldable columns
INDENT = "  "
EMPTY = ("", "-")  # cells that a block omits


@dataclass(frozen=True)
class Column:
    """Column of a table. `fold`: minimum width if its cells may be wrapped, else 0."""

    name: str
    right: bool = False
    fold: int = 0


class ResponsiveTable:
    """Table, or a block of `name value` pairs for each row if the table is too wide.

    Cells are rich markup; escape texts that may contain brackets.
    """

    def __init__(self, *columns: Column | str, title: str = "", plain: bool = False) -> None:
        self._columns = [Column(c) if isinstance(c, str) else c for c in columns]
        self._title, self._plain, self._rows = title, plain, list[tuple[str, ...]]()

    def add_row(self, *cells: str) -> None:
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least_width() <= options.max_width:
            yield self._table()
        else:
            yield from self._blocks(options.max_width)

    def _least_width(self) -> int:
        rows = [tuple(escape(c.name) for c in self._columns), *self._rows]
        widths = [
            max(Text.from_markup(cell).cell_len for cell in cells)
            for cells in zip(*rows, strict=True)
        ]
        least = [min(w, c.fold or w) for w, c in zip(widths, self._columns, strict=True)]
        return sum(least) + (len(least) if self._plain else 3 * len(least) + 1)

    def _table(self) -> Table:
        table = Table(title=self._title or None, title_justify="left")
        if self._plain:
            table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 1, 0, 0), False
        for column in self._columns:
            table.add_column(
                column.name,
                justify="right" if column.right else "left",
                no_wrap=not column.fold,
                overflow="fold",
            )
        for row in self._rows:
            table.add_row(*row)
        return table

    def _blocks(self, width: int) -> Iterator[Text]:
        if self._title:
            yield Text(self._title, style="italic")
        for row in self._rows:
            pairs = [
                Text.from_markup(f"{escape(column.name)} {cell}".strip())
                for column, cell in zip(self._columns, row, strict=True)
                if cell not in EMPTY
            ]
            yield from wrapped_lines(pairs, width)


def wrapped_lines(parts: Sequence[Text | str], width: int, indent: str = INDENT) -> Iterator[Text]:
    """Yield lines of comma-separated parts; a part that fits into a line is not broken."""
    line = Text(overflow="fold")
    for index, part in enumerate(parts):
        text = Text(part) if isinstance(part, str) else part
        comma = 1 if index + 1 < len(parts) else 0
        if line.plain.strip() and line.cell_len + 1 + text.cell_len + comma > width:
            yield line
            line = Text(indent, overflow="fold")
        elif line.plain.strip():
            line.append(" ")
        line.append_text(text).append("," * comma)
    yield line
