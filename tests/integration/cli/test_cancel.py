"""Ctrl-C and `stop`: the job ends at once, with exit code 130 or 0."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_dynamo.cli.cancel import Cancellation
from hpc_dynamo.cli.render.console import OUT
from tests.support.runs import HANG_S, SIMULATOR, hpc_dynamo, latest, until, write_prompts
from tests.support.terminal import (
    Call,
    end,
    ends,
    going_on,
    new_run,
    on_a_terminal,
    printed,
    rest_of,
)

BATCH = ("batch", *SIMULATOR, "input=p.jsonl", "engine.args.time-scale=30")
SOON_S = 60.0
# The phase "starting" does not end before Ctrl-C.
LONG_START = ("engine.args.start-delay-s=200",)
PHASES = [("is local job", ()), ("starting", LONG_START), (r"\d+/400 running", ())]


@pytest.mark.parametrize(("when", "words"), PHASES, ids=["submitted", "starting", "running"])
def test_ctrl_c_stops_a_batch_in_each_phase(
    when: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    write_prompts(tmp_path / "p.jsonl", 400, max_tokens=64)
    with on_a_terminal((*BATCH, *words), tmp_path, columns=80) as batch:
        batch.expect(when)
        pressed = time.monotonic()
        batch.sendintr()
        said = rest_of(batch)
        assert ends(batch) == 130
    assert time.monotonic() - pressed < SOON_S
    assert "stopping the job" in said
    assert "ended: stopped" in said
    for word in ("Traceback", "error", "killed", "without reporting"):
        assert word not in said, said


def test_second_ctrl_c_exits_without_waiting(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 400, max_tokens=64)
    with on_a_terminal(BATCH, tmp_path, columns=80) as batch:
        batch.expect(r"\d+/400 running")
        batch.sendintr()
        batch.expect_exact("press Ctrl-C again")
        batch.sendintr()
        assert "Traceback" not in rest_of(batch)
        assert ends(batch) == 130
    until("the job's own end", latest(tmp_path / "runs/p").outcome)


def test_stop_exits_with_0_and_the_stopped_batch_with_1(tmp_path: Path) -> None:
    write_prompts(tmp_path / "p.jsonl", 400, max_tokens=64)
    with on_a_terminal(BATCH, tmp_path, columns=80) as batch:
        batch.expect(r"\d+/400 running")
        done = hpc_dynamo("stop", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "stopped while running" in done.stdout
        assert "stopped while running" in rest_of(batch)
        assert ends(batch) == 1


def test_stop_without_a_name_prefers_an_active_run(tmp_path: Path, call: Call) -> None:
    """The newest run is a finished batch; an older endpoint still runs."""
    serving = new_run(tmp_path / "runs" / "srv")
    finished = new_run(tmp_path / "runs" / "newer")
    end(finished)
    later = time.time() + 10
    os.utime(finished.path.parent, (later, later))
    with going_on(serving):
        said = printed(call("stop"))
    assert said.endswith(f"{serving.run.path}: stopped; run the same command again\n"), said
    assert f"{finished.run.path} is not running" in printed(call("stop"))


def test_signal_during_submission_stops_the_job_afterwards() -> None:
    stopped = list[str]()
    with Cancellation(OUT) as cancel:
        signal.raise_signal(signal.SIGINT)  # sbatch runs
        assert cancel.by_ctrl_c
        assert stopped == []
        cancel.set_stop(lambda: stopped.append("job 1"))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stopped == ["job 1"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_is_not_reported_as_ctrl_c() -> None:
    with Cancellation(OUT) as cancel:
        cancel.set_stop(lambda: None)
        signal.raise_signal(signal.SIGTERM)
        assert cancel.requested
        assert not cancel.by_ctrl_c


@pytest.mark.parametrize("words", [["status", "srv"], ["logs", "srv"], ["status", "name=srv"]])
def test_run_is_found_by_its_bare_name(words: list[str], tmp_path: Path, call: Call) -> None:
    attempt = new_run(tmp_path / "elsewhere" / "srv")
    attempt.agent_log(0).write_text("a line\n")
    said = printed(call(*words, f"runs_dir={tmp_path}/elsewhere"))
    assert str(attempt.run.path) in said
    with_default = new_run(tmp_path / "runs" / "srv")
    assert str(with_default.run.path) in printed(call(*words))


def test_unknown_run_is_reported_with_its_absolute_path(tmp_path: Path, call: Call) -> None:
    new_run(tmp_path / "runs" / "srv")
    done = call("status", "svr")
    assert f"{tmp_path}/runs/svr is not a run" in done.stderr
    assert "known: srv" in done.stderr
    os.chdir(tmp_path.parent)
    assert f"{tmp_path.parent}/runs holds no run" in call("status").stderr


def test_ignored_sigint_stays_ignored(tmp_path: Path) -> None:
    """As for a command that a script starts with `&`."""
    code = "trap '' INT; echo ready; \"$0\" -m hpc_dynamo plan engine=simulator & wait"
    argv = ["sh", "-c", code, sys.executable]
    with subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        assert shell.stdout
        assert shell.stdout.readline() == b"ready\n"
        os.killpg(shell.pid, signal.SIGINT)
        assert b"prefill" in shell.communicate(timeout=HANG_S)[0]
