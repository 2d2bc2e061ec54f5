"""`hpc-dynamo logs` for run folders that a job writes to."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.cli.log_tail import LogTail
from hpc_dynamo.run import Attempt
from tests.support.runs import HANG_S
from tests.support.terminal import (
    Call,
    end,
    ends,
    going_on,
    new_run,
    on_a_terminal,
    printed,
    refused,
    rest_of,
)

LINES = st.lists(st.binary(max_size=12).filter(lambda b: not set(b) & set(b"\r\n")))


@given(LINES, st.lists(st.integers(0, 200), min_size=1), st.integers(0, 8))
def test_log_tail_returns_whole_lines_at_any_time(
    lines: list[bytes], cuts: list[int], count: int
) -> None:
    data = b"".join(line + b"\n" for line in lines) + b"torn"
    first, *edges = sorted(min(cut, len(data)) for cut in cuts)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "log"
        file.write_bytes(data[:first])
        tail = LogTail(file)
        shown = tail.last(count)
        for edge in [*edges, len(data)]:
            file.write_bytes(data[:edge])
            shown += tail.read()
        shown += tail.rest()
    text = [line.decode(errors="replace") for line in data.split(b"\n")]
    assert shown == text[max(0, data[:first].count(b"\n") - count) :]


def test_log_tail_reads_a_long_log_from_its_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert LogTail(file).last(3) == ["line 99997", "line 99998", "line 99999"]
    assert LogTail(file).last(20_000)[0] == "line 80000"


def test_log_tail_of_a_missing_and_of_a_rewritten_log(tmp_path: Path) -> None:
    file = tmp_path / "log"
    tail = LogTail(file)
    assert [*tail.last(5), *tail.read()] == []
    file.write_text("one\ntwo\n")
    assert tail.read() == ["one", "two"]
    file.write_text("new\n")
    assert tail.read() == ["new"]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    attempt = new_run(tmp_path / "runs" / "a run")
    attempt.agent_log(0).write_text("head 1\nhead [2]\n")
    attempt.worker_log(1).write_text("".join(f"worker {i}\n" for i in range(30)))
    attempt.frontend_log(2).write_text("GET /v1/models\n")
    return attempt


def test_logs_lists_all_logs(attempt: Attempt, call: Call) -> None:
    text = printed(call("logs"))
    rows = [[c.strip() for c in row.split("│")[1:-1]] for row in text.splitlines() if "│" in row]
    assert rows == [
        ["head", "16", "head [2]"],
        ["agent-1", "-", ""],
        ["frontend-0", "-", ""],
        ["0", "-", ""],
        ["1", "290", "worker 29"],
        ["frontend-2", "15", "GET /v1/models"],
    ]
    assert str(attempt.logs.relative_to(attempt.run.path.parent)) in text


def test_list_of_logs_cuts_only_long_last_lines(
    attempt: Attempt, call: Call, tmp_path: Path
) -> None:
    attempt.worker_log(0).write_text("x" * 500 + "\n")
    with on_a_terminal(["logs"], tmp_path, columns=60) as logs:
        text = rest_of(logs)
    assert re.search(r"│ 0 +│ +501 │ x+… │", text)
    assert re.search(r"│ frontend-2 +│ +15 │ GET", text)
    assert re.search(r"│ 0 +│ +501 │ x{500} │", printed(call("logs"))), "not a terminal"


@pytest.mark.parametrize(
    "words", [["1"], ["worker-1"], ["runs/a run", "1"], ["name=a run", "1"], ["a run", "1"]]
)
def test_logs_prints_the_end_of_one_log(words: list[str], attempt: Attempt, call: Call) -> None:
    head, *lines = printed(call("logs", *words, "-n", "2")).splitlines()
    assert head == f"==> {attempt.worker_log(1)} <=="
    assert lines == ["worker 28", "worker 29"]
    assert len(printed(call("logs", *words)).splitlines()) == 11


def test_logs_of_head_and_frontends_have_names(attempt: Attempt, call: Call) -> None:
    assert printed(call("logs", "head")).endswith("head 1\nhead [2]\n")
    assert printed(call("logs", "agent-0")).endswith("head [2]\n")
    assert printed(call("logs", "frontend-2")).endswith("GET /v1/models\n")


def test_unknown_log_lists_the_known_logs(attempt: Attempt, call: Call) -> None:
    known = "known: 0, 1, agent-1, frontend-0, frontend-2, head"
    refused(call("logs", "7"), "log='7' is not known", known)
    refused(call("logs", "hed"), "did you mean 'head'?", known)
    refused(call("logs", "runs/b", "0"), "runs/b is not a run", "known: a run")
    refused(call("logs", "0", "1"), "one log at a time")


def test_follow_one_log_until_the_run_ends(attempt: Attempt, tmp_path: Path) -> None:
    with going_on(attempt), on_a_terminal(["logs", "0", "-f"], tmp_path) as logs:
        logs.expect_exact("worker-0.log <==")
        attempt.worker_log(0).write_text("late\n")
        logs.expect_exact("late")
        with attempt.worker_log(0).open("a") as log:
            log.write("half")
            log.flush()
            log.write(" and half\nlast words")
        logs.expect_exact("half and half\r\n")
        end(attempt)
        logs.expect_exact("last words\r\n")
        assert ends(logs) == 0


def test_follow_all_logs_including_new_ones(attempt: Attempt, tmp_path: Path) -> None:
    with going_on(attempt), on_a_terminal(["logs", "-f", "-n1"], tmp_path) as logs:
        logs.expect_exact("      head | head [2]\r\n")
        logs.expect_exact("         1 | worker 29\r\n")
        attempt.frontend_log(3).write_text("POST\n")
        logs.expect_exact("frontend-3 | POST\r\n")
        logs.sendintr()
        assert ends(logs) == 0


def test_logs_ends_quietly_when_its_reader_ends(attempt: Attempt, tmp_path: Path) -> None:
    attempt.worker_log(0).write_text("x" * 99 + "\n" + "y\n" * 100_000)
    line = f"{sys.executable} -m hpc_dynamo logs 0 -n 200000 | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=HANG_S)
    assert done.stdout.startswith(b"==> ")
    assert done.stderr == b""
