"""Table of faults in docs/operations/reliability.md: `python -m tools.fault_table [--check]`.

The rows come from tests/faults/rows.jsonl, to which `make faults` appends.
"""

import ast
import statistics
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tests.support.fault_rows import KEPT, FaultRow, read_rows

PAGE = Path(__file__).parents[1] / "docs/operations/reliability.md"
TESTS = Path(__file__).parents[1] / "tests/faults"
BEGIN, END = "<!-- table of faults: begin -->\n", "<!-- table of faults: end -->\n"
MESSAGE = 100  # characters of an error
HEADER = (
    "| Fault | Promise | Result | Recovery time | Requests lost |",
    "|---|---|---|---|---|",
)


def table(rows: Sequence[FaultRow]) -> str:
    """Return a summary and a table for each test file, in Markdown."""
    faults: dict[str, list[FaultRow]] = {}
    for row in rows:
        faults.setdefault(row.fault, []).append(row)
    lines = ["", _summary(faults, rows)]
    for file, found in groupby(faults.values(), lambda found: found[0].test.partition("::")[0]):
        lines += ["", f"### {_title(file)}", "", *HEADER, *map(_line, found)]
    return "\n".join([*lines, "", ""])


def _title(file: str) -> str:
    """Return the first sentence of a test file's docstring, without its end."""
    path = TESTS / file
    text = ast.get_docstring(ast.parse(path.read_text())) if path.exists() else None
    return (text or file).splitlines()[0].partition(". ")[0].rstrip(".")


def _summary(faults: dict[str, list[FaultRow]], rows: Sequence[FaultRow]) -> str:
    seeds = sorted({len(found) for found in faults.values()}) or [0]
    dates = sorted({row.date for row in rows}) or [""]
    broken = sum(any(row.result != KEPT for row in found) for found in faults.values())
    many = "-".join(str(count) for count in dict.fromkeys((seeds[0], seeds[-1])))
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"{len(faults)} faults, {many} seeds each, {when}; {broken} with a shortfall."


def _line(found: list[FaultRow]) -> str:
    first = found[0]
    cells = (first.fault, first.promise, _result(found), _recovery(found), _lost(found))
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _result(found: list[FaultRow]) -> str:
    broken = [row for row in found if row.result != KEPT]
    if not broken:
        return KEPT
    return f"**shortfall** in {len(broken)} of {len(found)}: {broken[0].result[:MESSAGE]}"


def _recovery(found: list[FaultRow]) -> str:
    """Return the median over the seeds, and the longest time if it differs."""
    times = [row.recovery_s for row in found if row.recovery_s is not None]
    if not times:
        return "-"
    usual, worst = f"{statistics.median(times):.1f} s", f"{max(times):.1f} s"
    return usual if usual == worst else f"{usual}, worst {worst}"


def _lost(found: list[FaultRow]) -> str:
    sent = sum(row.sent for row in found)
    return f"{sum(row.lost for row in found)} of {sent}" if sent else "-"


def page(text: str, rows: Sequence[FaultRow]) -> str:
    """Return the page with the present table."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + begin + table(rows) + end + after


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` only report if it is out of date."""
    text = PAGE.read_text()
    new = page(text, read_rows())
    if "--check" in arguments and new != text:
        print(f"{PAGE.name} is out of date: run `python -m tools.fault_table`", file=sys.stderr)
        return 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
