"""The command line in this process or on a pseudo terminal, and made-up run folders."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]  # it has no type information
import pytest

from hpc_dynamo.cli.command_line import main
from hpc_dynamo.config import Config, Role, Serve, Task
from hpc_dynamo.messages import (
    Endpoint,
    JobRecord,
    Outcome,
    Quantiles,
    Status,
    Traffic,
    WorkerLoad,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.run import Attempt, Run, Secrets, write_json
from hpc_dynamo.topology import Plan, Shard, Worker
from tests.support.runs import HANG_S

Done = subprocess.CompletedProcess[str]
Call = Callable[..., Done]
Process = Any  # a pexpect.spawn of text

PLAN = Plan(
    2, 0, (Worker(0, Role.prefill, (Shard(0, ()),)), Worker(1, Role.decode, (Shard(1, ()),)))
)


def caller(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run `main` in this process, in the folder `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Done:
        try:
            code = main(words)
        except SystemExit as e:  # argparse
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, out, err)

    return run


def printed(done: Done) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def refused(done: Done, *parts: str, code: int = 3) -> None:
    """Assert exit code and texts of an error, without a traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@contextmanager
def on_a_terminal(
    words: Sequence[str],
    cwd: Path,
    env: dict[str, str] | None = None,
    columns: int = 160,
    start: Sequence[str] = ("-m", "hpc_dynamo"),
) -> Iterator[Process]:
    """Run `hpc-dynamo` on a pseudo terminal of 50 lines."""
    own = {**os.environ, "TERM": "xterm", **(env or {})}
    own.pop("COLUMNS", None)
    own.pop("NO_COLOR", None)
    argv = [*start, *words]
    process: Process = pexpect.spawn(
        sys.executable,
        argv,
        cwd=str(cwd),
        env=own,
        timeout=HANG_S,
        dimensions=(50, columns),
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.close(force=True)


def ends(process: Process) -> int:
    """Wait for the end and return the exit code."""
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus is not None, f"killed by signal {process.signalstatus}"
    return int(process.exitstatus)


def rest_of(process: Process) -> str:
    """Return the output until the end, as a user sees it."""
    process.expect(pexpect.EOF)
    return seen(str(process.before))


def seen(printed: str) -> str:
    """Return text without colours and cursor movements, with plain line ends."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).replace("\r\n", "\n").replace("\r", "\n")


def new_run(path: Path, config: Config | None = None) -> Attempt:
    """Create the first attempt of a serving run on two nodes."""
    run = Run(path)
    run.create(Secrets(token="t", public="p", private="p"))
    return run.new_attempt(config or replace(Config(), task=Task.serve), PLAN)


@contextmanager
def going_on(attempt: Attempt) -> Iterator[None]:
    """Let the attempt's job run, as a sleeping process, until the block ends."""
    argv = [sys.executable, "-c", "import time; time.sleep(100)", str(attempt.submitit)]
    with subprocess.Popen(argv) as process:
        host = os.uname().nodename
        record = JobRecord(launcher="local", job_id="1", host=host, pid=process.pid)
        write_json(attempt.job_file, record)
        try:
            yield
        finally:
            process.kill()


def announce(attempt: Attempt, url: str, *, cert: str = "", host: str = "n7") -> Endpoint:
    """Write the endpoint file, as if the endpoint accepted requests."""
    if cert:
        serve = Serve(tls_cert=cert, tls_key=cert)
        write_json(attempt.config_file, replace(attempt.config(), serve=serve))
    endpoint = Endpoint(
        url=url,
        host=host,
        address="0.0.0.0",
        port=1,
        model="scripted",
        key_file=str(attempt.run.key_file),
        tls=bool(cert),
    )
    write_json(attempt.endpoint_file, endpoint)
    return endpoint


def report(attempt: Attempt, *, requests: int = 120, phase: str = "serving") -> None:
    """Write a status file, as the head does every second."""
    ranks = ((0, Role.prefill, "n7", WorkerState.ready), (1, Role.decode, "n8", WorkerState.failed))
    load = WorkerLoad(
        rank=0,
        active=3,
        served=117,
        running=2,
        waiting=1,
        kv_usage=0.42,
        cache_hit_rate=0.875,
        ttft=Quantiles(p50=0.0123, p99=0.0456, count=117),
        itl=Quantiles(p50=0.004, p99=0.009, count=117),
    )
    workers = tuple(
        WorkerReport(rank=rank, role=role, node=rank, host=host, state=state)
        for rank, role, host, state in ranks
    )
    traffic = Traffic(requests=requests, failed=2, refused=7, active=3, queued=5, rate_hz=4.25)
    now = time.time()
    status = Status(
        phase=phase, at=now, ends_at=now + 3725, workers=workers, loads=(load,), traffic=traffic
    )
    write_json(attempt.status_file, status)


def end(attempt: Attempt, message: str = "", code: int = 0) -> None:
    write_json(attempt.outcome_file, Outcome(exit_code=code, message=message))
