"""`hpc-dynamo serve` from the login node's side: what it submits, follows and prints.

Slurm's programs are fakes that read and write files. The test acts as the head: it writes the
files of a head into the run folder. The last test has a real job on this machine.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.config import Serve, Task
from hpc_dynamo.run import Attempt, Run
from tests.support.runs import HANG_S, SIMULATOR, hpc_dynamo, latest, until
from tests.support.terminal import Process, announce, end, ends, on_a_terminal, report

pytestmark = pytest.mark.slow

PROGRAMS = {
    "sbatch": "echo Submitted batch job 42",
    "srun": "echo 'MPI plugin types are none pmix'",
    "squeue": 'cat "$STAND_IN/queue"',
    "scontrol": "echo JobState=FAILED Reason=NodeFail ExitCode=1:0",
    "scancel": 'touch "$STAND_IN/cancelled"',
}
WORDS = ("serve", "engine=simulator", "cluster.launcher=slurm", "model.name=my model/7b")
SIMULATED = Path("runs") / "serve-my-model-7b"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    (tmp_path / "queue").write_text("RUNNING|None|2026-01-01T00:00:00|n[7-8]\n")
    return {"PATH": f"{folder}:{os.environ['PATH']}", "STAND_IN": str(tmp_path)}


@contextmanager
def served(folder: Path, env: dict[str, str]) -> Iterator[tuple[Process, Attempt]]:
    """Yield the command on a terminal, and its submitted attempt."""
    with on_a_terminal(WORDS, folder, env) as serve:
        serve.expect_exact("attempt 1 is slurm job 42")
        yield serve, latest(folder / SIMULATED)


def test_detached_job_has_absolute_paths(tmp_path: Path, env: dict[str, str]) -> None:
    for name in ("cert.pem", "key.pem", "key"):
        (tmp_path / name).write_text("x")
    files = ["serve.tls_cert=cert.pem", "serve.tls_key=key.pem", "serve.api_key_file=key"]
    done = hpc_dynamo(*WORDS, "--detach", *files, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    run = tmp_path / SIMULATED
    assert f"to see the endpoint: hpc-dynamo status {run}" in done.stdout
    config = latest(run).config()
    assert (config.task, config.name, config.input) == (Task.serve, run.name, "")
    assert config.runs_dir == str(tmp_path / "runs")
    paths = {"tls_cert": "cert.pem", "tls_key": "key.pem", "api_key_file": "key"}
    absolute = {name: str(tmp_path / file) for name, file in paths.items()}
    assert config.serve == replace(Serve(), **absolute)  # type: ignore[arg-type]  # all are str


def test_next_attempt_keeps_the_key(tmp_path: Path, env: dict[str, str]) -> None:
    keys = []
    for _ in range(2):
        done = hpc_dynamo(*WORDS, "--detach", cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        run = Run(tmp_path / SIMULATED)
        end(run.attempts()[-1])
        keys.append(run.api_key())
    assert (len(run.attempts()), len(set(keys))) == (2, 1)
    assert run.key_file.stat().st_mode & 0o777 == 0o600


def test_serve_prints_client_instructions_and_a_live_table(
    tmp_path: Path, env: dict[str, str]
) -> None:
    with served(tmp_path, env) as (serve, attempt):
        serve.expect_exact("running (n[7-8])")
        report(attempt)
        serve.expect_exact("worker 0 (prefill) on n7: ready")
        serve.expect_exact("120 requests")
        announce(attempt, "http://10.0.0.7:8001/v1")
        serve.expect_exact("base URL: http://10.0.0.7:8001/v1\r\n")
        serve.expect_exact(f"cat {attempt.run.key_file}\r\n")
        serve.expect("curl [^\r\n]*/chat/completions [^\r\n]*-d [^\r\n]*Hello[^\r\n]*\r\n")
        serve.expect("ssh -L 8000:10.0.0.7:8001 \\S+@\\S+\r\n")
        report(attempt, requests=121)
        serve.expect_exact("121 requests")
        end(attempt, "the walltime ended")
        assert ends(serve) == 0
        assert serve.before
        assert "base URL" not in serve.before, "once is enough"


def test_ctrl_c_stops_the_job(tmp_path: Path, env: dict[str, str]) -> None:
    with served(tmp_path, env) as (serve, attempt):
        report(attempt)
        serve.expect_exact("120 requests")
        serve.sendintr()
        serve.expect_exact("stopping the job")
        until("scancel", (tmp_path / "cancelled").exists)
        end(attempt, "stopped while serving", code=1)
        serve.expect_exact("attempt 1 ended: stopped while serving")
        assert ends(serve) == 130
        assert "error" not in str(serve.before)


@pytest.mark.slow  # a shared disk is given ten seconds to show an outcome
def test_serve_shows_the_queue_reason_and_a_job_without_outcome(
    tmp_path: Path, env: dict[str, str]
) -> None:
    (tmp_path / "queue").write_text("PENDING|Resources|N/A|\n")
    with served(tmp_path, env) as (serve, _):
        serve.expect_exact("pending (it is next; nodes have to become free (Resources))")
        (tmp_path / "queue").write_text("")
        serve.expect_exact("without reporting a result: its script failed (JobState=FAILED")
        assert ends(serve) == 1


def test_serve_prints_plain_lines_into_a_log(tmp_path: Path, env: dict[str, str]) -> None:
    """As in the output file of an sbatch script."""
    log = tmp_path / "log"
    argv = [sys.executable, "-m", "hpc_dynamo", *WORDS]
    with (
        log.open("w") as out,
        subprocess.Popen(
            argv, cwd=tmp_path, env={**os.environ, **env}, stdout=out, stderr=out
        ) as serve,
    ):
        until("it is submitted", lambda: "slurm job 42" in log.read_text())
        attempt = latest(tmp_path / SIMULATED)
        report(attempt)
        until("traffic", lambda: "120 requests, 4.2/s, 3 active" in log.read_text())
        announce(attempt, "http://10.0.0.7:8001/v1")
        until("the endpoint", lambda: "base URL: http://10.0.0.7:8001/v1\n" in log.read_text())
        end(attempt, "the walltime ended")
        assert serve.wait(30) == 0
    text = log.read_text()
    assert text.endswith("the walltime ended\n")
    assert "\x1b" not in text
    assert text.count("base URL:") == 1


def test_real_endpoint_answers_until_ctrl_c(tmp_path: Path) -> None:
    with on_a_terminal(["serve", *SIMULATOR, "name=real"], tmp_path) as serve:
        serve.expect_exact("simulated answers on")
        serve.expect("curl [^\r\n]*")
        answer = json.loads(
            subprocess.check_output(["bash", "-c", f"{serve.after} -s"], timeout=HANG_S)
        )
        assert answer["choices"][0]["message"]["content"]
        done = hpc_dynamo("chat", "name=real", "--max-tokens=1", "Hello", cwd=tmp_path)
        assert done.stdout.strip(), done.stderr
        serve.expect_exact("2 requests, ")
        serve.sendintr()
        serve.expect_exact("stopping the job")
        serve.expect_exact("ended: stopped")
        assert ends(serve) == 130
    refused = hpc_dynamo("chat", "name=real", "Hello", cwd=tmp_path)
    assert "runs/real has ended: stopped" in refused.stderr
