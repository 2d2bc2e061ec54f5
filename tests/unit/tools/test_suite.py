"""Last lines of the output of `make test`."""

import sys
from pathlib import Path

from tests.suite import report, run

OUTPUT = """\
local test output
FAILED as a line of a log
=========================== short test summary info ============================
SKIPPED [1] tests/unit/test_a.py:98: apt-get install wrk
FAILED tests/unit/test_a.py::test_one[a b] - AssertionError: 1 == 2
ERROR tests/unit/test_b.py::test_two - OSError: no space
a second line of a reason
FAILED tests/unit/test_c.py::test_three
============ 2 failed, 5671 passed, 1 skipped, 1 error in 4.64s ============
ERROR after the summary
"""
FAILURES = [
    "FAILED tests/unit/test_a.py::test_one[a b] - AssertionError: 1 == 2",
    "ERROR tests/unit/test_b.py::test_two - OSError: no space",
    "FAILED tests/unit/test_c.py::test_three",
]


async def test_last_lines_name_all_failed_tests() -> None:
    code = f"print({OUTPUT!r}, end=''); raise SystemExit(1)"
    failed = await run("local", (sys.executable, "-I", "-c", code))
    passed = await run("lint", (sys.executable, "-I", "-c", "print('FAILED 0')"))
    lines = report([failed, passed]).splitlines()
    assert lines[0].startswith("local")
    assert "FAILED (exit code 1)" in lines[0]
    assert lines[1].startswith("lint")
    assert lines[2:] == [f"local    | {line}" for line in FAILURES]


async def test_long_lines_are_read_and_shortened() -> None:
    """asyncio limits lines to 64 KiB unless a limit is given."""
    start = "FAILED tests/unit/test_a.py::test_one - "
    code = f"print('== short test summary info ==', {start!r} + 'x' * 200_000, sep='\\n')"
    failed = await run("local", (sys.executable, "-I", "-c", code))
    (line,) = failed.failures
    assert line.startswith(start + "xxx")
    assert len(line) < 1000


async def test_reasons_of_pytest_are_not_cut_at_the_width_of_a_terminal(tmp_path: Path) -> None:
    name = "test_" + "long_name_" * 10
    reason = "a reason and its end"
    (tmp_path / "test_it.py").write_text(f"def {name}():\n    raise OSError({reason!r})\n")
    options = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={tmp_path}")
    failed = await run("local", (sys.executable, "-m", "pytest", *options, str(tmp_path)))
    (line,) = failed.failures
    assert line.endswith(f"test_it.py::{name} - OSError: {reason}")
