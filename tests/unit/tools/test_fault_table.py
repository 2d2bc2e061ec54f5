"""Table of faults: rows of several seeds, shortfalls, and the page around them."""

from pathlib import Path

import msgspec

from tests.support.fault_rows import KEPT, FaultRecorder, FaultRow, append_rows, read_rows
from tools.fault_table import BEGIN, END, page

ROW = FaultRow("SIGKILL", "restarted", KEPT, 2.0, 10, 0, 0, "test_a.py::test", "abc", "2026-01-01")


def test_rows_of_seeds_become_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    slow = msgspec.structs.replace(ROW, recovery_s=5.0, lost=1, seed=1)
    append_rows(file, [msgspec.structs.replace(ROW, recovery_s=9.0), slow])
    append_rows(file, [ROW])
    text = page(f"before\n{BEGIN}old\n{END}after\n", read_rows(file))
    assert "| SIGKILL | restarted | as promised | 3.5 s, worst 5.0 s | 1 of 20 |\n" in text
    assert "1 faults, 2 seeds each, 2026-01-01; 0 with a shortfall." in text
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
    assert page(text, read_rows(file)) == text


def test_shortfalls_stay_visible() -> None:
    lost = msgspec.structs.replace(ROW, seed=1, result="3 | lost", recovery_s=None)
    text = page(BEGIN + END, [ROW, lost])
    assert "**shortfall** in 1 of 2: 3 &#124; lost | 2.0 s |" in text


def test_failure_belongs_to_last_row_of_a_test() -> None:
    fault = FaultRecorder(3, "test")
    fault("first", "p").requests(4)
    fault("second", "p").recovered()
    assert [row.result for row in fault.rows("")] == [KEPT, KEPT]
    first, second = fault.rows("it broke")
    assert (first.result, first.sent, first.recovery_s) == (KEPT, 4, None)
    assert (second.result, second.seed) == ("it broke", 3)
    assert FaultRecorder(3, "").chance.random() == fault.chance.random()
