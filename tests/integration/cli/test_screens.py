"""Screens at 60, 80 and 120 columns, and in pipes: no role, state or number is cut."""

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect  # type: ignore[import-untyped]  # it has no type information
import pytest
from rich.console import Console, RenderableType

from hpc_dynamo.cli.render.console import FoldedLines, UnlimitedConsole
from hpc_dynamo.cli.render.doctor import report_view
from hpc_dynamo.cli.render.progress import ProgressView
from hpc_dynamo.cli.render.status import status as status_view
from hpc_dynamo.cli.render.table import Column, ResponsiveTable
from hpc_dynamo.config import Role
from hpc_dynamo.doctor.records import (
    DoctorReport,
    Finding,
    FindingLevel,
    LinkResult,
    NodeFacts,
    NodeReady,
)
from hpc_dynamo.errors import ExitCode
from hpc_dynamo.launch import JobState
from hpc_dynamo.messages import (
    BatchSummary,
    Outcome,
    Progress,
    Quantiles,
    Status,
    Traffic,
    WorkerLoad,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.run import Attempt, write_json
from tests.support.runs import SIMULATOR, hpc_dynamo, write_prompts
from tests.support.terminal import ends, new_run, on_a_terminal, rest_of, seen

WIDTHS = (60, 80, 120)
HOST = "gpu-node-0123.cluster.example.org"
FIGURES = ["12", "3", "4", "42%", "88%", "1234/45678", "123/4567", "123456"]


def drawn(what: RenderableType, columns: int) -> str:
    """Return the text as a redrawn terminal of this width shows it."""
    out = io.StringIO()
    Console(file=out, width=columns, force_terminal=True, color_system=None).print(
        FoldedLines(what)
    )
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns, "a line is wider than the terminal"
    assert "…" not in out.getvalue()
    return out.getvalue()


def words(text: str) -> str:
    """Return the words without the lines of tables."""
    return " ".join(re.sub(r"[│┃─━┏┓┗┛┡┩┌┐└┘├┤┼╇┳┴┬]", " ", text).split())


def write_busy_status(attempt: Attempt, host: str = HOST) -> None:
    load = WorkerLoad(
        rank=0, active=12, served=123456, running=3, waiting=4, kv_usage=0.42,
        cache_hit_rate=0.88,
        ttft=Quantiles(p50=1.234, p99=45.678, count=9),
        itl=Quantiles(p50=0.123, p99=4.567, count=9),
    )  # fmt: skip
    states = (WorkerState.starting, WorkerState.stopped, WorkerState.ready, WorkerState.failed)
    workers = tuple(
        WorkerReport(rank=rank, role=role, node=0, host=host, state=state)
        for rank, (role, state) in enumerate(zip([*Role, Role.decode], states, strict=True))
    )
    traffic = Traffic(requests=1234567, failed=1, refused=2, active=34, queued=56, rate_hz=78.9)
    status = Status(
        phase="serving", at=time.time(), workers=workers, loads=(load,), traffic=traffic
    )
    write_json(attempt.status_file, status)


@pytest.mark.parametrize("host", ["n7", HOST])
@pytest.mark.parametrize("columns", WIDTHS)
def test_status_at_any_width_shows_roles_states_and_numbers(
    columns: int, host: str, tmp_path: Path
) -> None:
    attempt = new_run(tmp_path / "r")
    write_busy_status(attempt, host)
    shown = words(drawn(status_view(attempt, (JobState.running, "n7")), columns))
    for word in (*Role, "starting", "stopped", "ready", "failed", *FIGURES):
        assert word in shown.replace(",", "").split(), word
    assert "1234567 requests" in shown
    assert host in shown or columns == 120, "it may be folded in a table"


@pytest.mark.parametrize("columns", WIDTHS)
def test_status_on_a_real_terminal(columns: int, tmp_path: Path) -> None:
    attempt = new_run(tmp_path / "runs" / "r")
    write_busy_status(attempt)
    with on_a_terminal(["status", "r"], tmp_path, columns=columns) as status:
        text = rest_of(status)
        assert ends(status) == 0
    for word in ("prefill", "aggregated", "starting", "stopped", "1234/45678", "123456"):
        assert word in text
    assert "…" not in text


def test_output_in_a_pipe_has_no_width_and_no_control_codes(tmp_path: Path) -> None:
    attempt = new_run(tmp_path / "runs" / "r")
    write_busy_status(attempt)
    for columns in ("60", "200"):
        done = hpc_dynamo("status", "r", cwd=tmp_path, env={"COLUMNS": columns, "FORCE_COLOR": "1"})
        row = next(line for line in done.stdout.splitlines() if "starting" in line)
        assert seen(row).split()[:4] == ["0", "prefill", HOST, "starting"]
        assert "\x1b[2K" not in done.stdout
        assert "\x1b[1A" not in done.stdout


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize(("done", "total"), [(1, 3), (234, 400), (999_999, 1_000_000)])
def test_progress_starts_with_the_count_at_any_width(columns: int, done: int, total: int) -> None:
    progress = Progress(
        total=total, done=done, running=128, elapsed_s=9000.0, completion_tokens=12345678
    )
    first, *rest = drawn(
        ProgressView(progress, "running", time.monotonic() - 9000), columns
    ).splitlines()
    assert first.split()[:2] == [f"{done}/{total}", "running"]
    assert "━" in first, "there is room for a bar"
    assert "2:30:00" in first
    shown = " ".join(rest)
    assert "0 failed, 128 running" in shown
    assert "requests/s" in shown
    assert "1372 tokens/s" in words(shown)


def test_progress_with_a_long_phase_has_no_bar() -> None:
    reason = "pending: cannot start: " + "the partition does not allow so many nodes " * 2
    shown = drawn(ProgressView(Progress(), reason, time.monotonic()), 60)
    assert " ".join(shown.split()).startswith(reason.strip())
    assert "0:00:00" in shown


@pytest.mark.parametrize("columns", WIDTHS)
def test_doctor_at_any_width_shows_whole_addresses_and_fixes(columns: int) -> None:
    facts = NodeFacts(host=HOST, shm_free=8 << 30, tmp_free=8 << 30, nofile=1048576, memlock=-1)
    addresses = [f"10.183.200.{n}" for n in range(101, 105)]
    nodes = tuple(
        NodeReady(node=i, facts=facts, address=a, port=1, memory="host")
        for i, a in enumerate(addresses)
    )
    links = tuple(
        LinkResult(node=a, peer=b, gb_s=12.34, latency_us=56.0, transport="rc_mlx5")
        for a in range(4) for b in range(4) if a != b
    )  # fmt: skip
    fix = "ulimit -n 65536, or LimitNOFILE= of slurmd; " * 3
    finding = Finding(check="x", level=FindingLevel.fault, what="few files", why="w", fix=fix)
    hosts = tuple(f"n{i}" for i in range(4))
    report = DoctorReport(hosts=hosts, nodes=nodes, links=links, findings=(finding,), seconds=1.0)
    shown = words(drawn(report_view(report), columns))
    for address in addresses:
        assert address in shown
    assert shown.count("12.34 / 56") == 12
    assert words(fix) in shown


@pytest.mark.parametrize("columns", WIDTHS)
def test_split_search_at_any_width_shows_its_numbers(columns: int, tmp_path: Path) -> None:
    line = {"input_length": 2000, "output_length": 20, "hash_ids": [1, 2, 3]}
    rows = [json.dumps({**line, "timestamp": 500 * i}) for i in range(20)]
    (tmp_path / "trace.jsonl").write_text("\n".join(rows))
    split = ("topology.prefill.workers=2", "topology.decode.workers=2")
    argv = ["simulate", "--trace", "trace.jsonl", "--search", *split]
    with on_a_terminal(argv, tmp_path, columns=columns) as simulate:
        text = rest_of(simulate)
        assert ends(simulate) == 0
    table = text[text.index("requests in") :]
    assert "…" not in table
    assert len(re.findall(r"\d+\.\d{3}\b", table)) >= 4, "goodput"
    assert table.count("100.0 %") >= 1
    assert "3 prefill + 1 decode" in words(table)


def test_paths_of_results_are_printed_on_lines_of_their_own(tmp_path: Path) -> None:
    attempt = new_run(tmp_path / ("a-long-name-of-a-folder-" * 5) / "runs" / "r")
    summary = BatchSummary(progress=Progress(total=3, done=2, failed=1), seconds=2.0)
    write_json(attempt.outcome_file, Outcome(exit_code=0, summary=summary))
    with on_a_terminal(["status", str(attempt.run.path)], tmp_path, columns=60) as status:
        text = rest_of(status)
    assert f"answers: {attempt.run.output}\n" in text
    assert f"errors:  {attempt.run.errors}\n" in text
    assert "2 answered, 1 failed" in text


def test_batch_on_a_narrow_terminal_shows_a_bar_and_the_result(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 30, max_tokens=30)
    # It runs for ten seconds, so that a slow screen does not miss it.
    argv = ["batch", *SIMULATOR, "input=p.jsonl", "engine.args.time-scale=30"]
    with on_a_terminal(argv, tmp_path, columns=60) as batch:
        batch.expect(r"\d+/30 running [^\r\n]*━[^\r\n]* 0:\d\d:\d\d")
        text = rest_of(batch)
        assert ends(batch) == 0
    assert f"answers: {tmp_path / 'runs/p/output.jsonl'}\n" in text
    assert "30 answered, 0 failed" in text


def test_output_in_a_notebook_is_plain_lines(tmp_path: Path) -> None:
    """A notebook runs `!command` on a pseudo terminal and prints all of its output."""
    write_prompts(tmp_path / "p.jsonl", 3)
    argv = ["batch", *SIMULATOR, "input=p.jsonl"]
    with on_a_terminal(argv, tmp_path, {"JPY_PARENT_PID": "1"}, columns=80) as batch:
        batch.expect(pexpect.EOF)
        printed = str(batch.before)
    assert "3 answered, 0 failed" in printed
    assert not re.search(r"\x1b\[\d*[A-K]", printed), "cursor codes"


class Pipe(io.StringIO):
    def isatty(self) -> bool:
        return False


@pytest.fixture
def grid() -> ResponsiveTable:
    grid = ResponsiveTable(Column("name", fold=8), Column("count", right=True), title="a title")
    grid.add_row("x" * 30, "1")
    grid.add_row("", "22")
    return grid


def lines_of(grid: ResponsiveTable, columns: int) -> Iterator[str]:
    return map(str.strip, drawn(grid, columns).splitlines())


def test_table_folds_first_and_then_becomes_lines(grid: ResponsiveTable) -> None:
    assert any("│ 1 " in line or " 1 │" in line for line in lines_of(grid, 60))
    assert sum("xxxxxxxx" in line for line in lines_of(grid, 24)) > 1, "folded"
    assert "count 22" in list(lines_of(grid, 15))


def test_table_in_a_pipe_is_not_cut(grid: ResponsiveTable) -> None:
    out = Pipe()
    UnlimitedConsole(file=out, soft_wrap=True).print(grid)
    assert "x" * 30 in out.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"], ["plan", "engine=simulator"]])
def test_output_in_ascii_and_latin_1(argv: list[str], encoding: str, tmp_path: Path) -> None:
    done = hpc_dynamo(*argv, cwd=tmp_path, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.isascii()
    if "--help" in argv:
        assert "..." in done.stdout


def test_help_documents_the_exit_codes(tmp_path: Path) -> None:
    for argv in (["--help"], ["batch", "--help"]):
        text = hpc_dynamo(*argv, cwd=tmp_path).stdout
        assert "exit codes: 0 done, " in text
        assert ", 130 interrupted (`help exit-codes`)" in text
    table = hpc_dynamo("help", "exit-codes", cwd=tmp_path).stdout
    assert "  130  ended by Ctrl-C" in table
    page = (Path(__file__).parents[3] / "docs" / "guides" / "command-line.md").read_text()
    for code in ExitCode:
        assert f"  {code:<5}{code.meaning}\n" in table
        assert f"\n| {code} | " in page, "docs/guides/command-line.md has all codes"
