"""Batches on this machine with agents, simulators and NIXL, by submitit's local executor."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import (
    HANG_S,
    SIMULATOR,
    answers,
    hpc_dynamo,
    latest,
    results_on_disk,
    until,
    until_results,
    write_prompts,
)

TWO_NODES = ("topology.nodes=2", "topology.prefill.workers=1", "topology.decode.workers=1")


def test_batch_answers_every_request_in_order(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 30)
    done = hpc_dynamo("batch", *SIMULATOR, *TWO_NODES, "input=prompts.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "prompts"
    assert list(answers(run / "output.jsonl")) == ids
    assert (run / "errors.jsonl").read_text() == ""
    outcome = latest(run).outcome()
    assert outcome is not None
    assert outcome.summary is not None
    assert outcome.summary.kv_bytes > 0, "NIXL moved nothing"
    assert outcome.summary.progress.completion_tokens == 30 * 8
    assert "30 answered" in done.stdout


SHADOWS = ("select", "queue", "http", "json", "socket", "typing", "msgspec", "numpy")


def test_modules_in_current_folder_are_not_imported(tmp_path: Path) -> None:
    """Agents, engines and frontends do not import them. The user's PYTHONPATH is kept."""
    ids = write_prompts(tmp_path / "prompts.jsonl", 3)
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')\n")
    command = str(Path(sys.executable).parent / "hpc-dynamo")  # `python -m` imports them by design
    words = (*SIMULATOR, *TWO_NODES, "input=prompts.jsonl")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")}
    argv = [command, "batch", *words]
    done = subprocess.run(
        argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(answers(tmp_path / "runs/prompts/output.jsonl")) == ids


def test_repeated_command_sends_nothing(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 5)
    first = hpc_dynamo("batch", *SIMULATOR, "input=prompts.jsonl", cwd=tmp_path)
    before = (tmp_path / "runs/prompts/output.jsonl").read_bytes()
    again = hpc_dynamo("batch", *SIMULATOR, "input=prompts.jsonl", cwd=tmp_path)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert (tmp_path / "runs/prompts/output.jsonl").read_bytes() == before
    assert "nothing to do" in again.stdout


def test_other_input_with_same_name_is_rejected(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2)
    assert hpc_dynamo("batch", *SIMULATOR, "input=prompts.jsonl", cwd=tmp_path).returncode == 0
    write_prompts(tmp_path / "prompts.jsonl", 3)
    refused = hpc_dynamo("batch", *SIMULATOR, "input=prompts.jsonl", cwd=tmp_path)
    assert refused.returncode == 3
    assert "another input" in refused.stderr
    assert "overwrite=true" in refused.stderr


def test_request_rejected_by_engine_is_in_errors(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 3)
    bad = {"custom_id": "too long", "prompt": "word " * 50_000, "max_tokens": 4}
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps(bad) + "\n")
    done = hpc_dynamo("batch", *SIMULATOR, "input=prompts.jsonl", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    run = tmp_path / "runs/prompts"
    assert list(answers(run / "output.jsonl")) == ids
    (row,) = map(json.loads, (run / "errors.jsonl").read_text().splitlines())
    assert row["custom_id"] == "too long"
    assert row["response"]["status_code"] == 400
    assert row["error"]["final"] is True
    assert row["error"]["message"].startswith("worker ")
    assert row["response"]["body"]["error"]["message"] in row["error"]["message"]


def test_lenient_json_and_null_fields_are_accepted(tmp_path: Path) -> None:
    rows = [
        rb'{"prompt": "null takes the default", "max_tokens": null}',
        rb'{"prompt": "set", "max_tokens": 2}',
        rb'{"prompt": "not a number", "repetition_penalty": NaN}',
        rb'{"prompt": "infinite", "top_k": 1e400}',
        rb'{"prompt": "half a pair \ud83d"}',
        rb'{"url": "/classify", "body": {"input": "a"}}',
    ]
    (tmp_path / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    words = (*SIMULATOR, "input=prompts.jsonl", "batch.body_defaults.max_tokens=3")
    done = hpc_dynamo("batch", *words, cwd=tmp_path)
    assert done.returncode == 4, done.stdout + done.stderr
    run = tmp_path / "runs/prompts"
    counts = {
        row["custom_id"]: row["response"]["body"]["usage"]["completion_tokens"]
        for row in map(json.loads, (run / "output.jsonl").read_text().splitlines())
    }
    assert counts == {"line-1": 3, "line-2": 2, "line-3": 3, "line-4": 3}
    failed = [json.loads(line) for line in (run / "errors.jsonl").read_text().splitlines()]
    assert [row["custom_id"] for row in failed] == ["line-5", "line-6"]
    assert "surrogates" in failed[0]["error"]["message"]
    assert failed[1]["error"]["message"].endswith("answered 404: Not Found")


def test_engine_start_failure_names_rank_node_and_log(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2)
    words = ("engine.args.fail-start=true", "engine.max_restarts=1", "input=prompts.jsonl")
    done = hpc_dynamo("batch", *SIMULATOR, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "worker" in done.stderr
    assert "worker-" in done.stderr, "no log is named"
    assert "exited with code" in done.stderr


def _start(tmp_path: Path, *words: str) -> Path:
    argv = (*SIMULATOR, "input=prompts.jsonl", *words)
    done = hpc_dynamo("batch", "--detach", *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "runs" / "prompts"


def _gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


SLOW = ("engine.args.time-scale=20", "batch.concurrency=4")
SILENCE = ("cluster.heartbeat_timeout_s=4", "cluster.reconnect_timeout_s=4")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the answers to 60 prompts from one aggregated worker."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_prompts(folder / "prompts.jsonl", 60, max_tokens=16)
    words = (*SIMULATOR, "topology=aggregated", "input=prompts.jsonl")
    done = hpc_dynamo("batch", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return answers(folder / "runs/prompts/output.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["head", "agent", "everything"])
def test_resume_after_kill_gives_each_result_once(
    tmp_path: Path, undisturbed: dict[str, str], victim: str
) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 60, max_tokens=16)
    run = _start(tmp_path, *TWO_NODES, *SLOW, *SILENCE)
    until_results(run, 5)
    attempt = latest(run)
    pids = {record.node: record.pid for record in attempt.nodes()}
    job = attempt.job()
    assert job is not None
    killed = {"head": [pids[0]], "agent": [pids[1]], "everything": [job.pid, *pids.values()]}
    for pid in killed[victim]:
        os.kill(pid, signal.SIGKILL)
    until("all agents gone", lambda: all(map(_gone, pids.values())))
    until("the engines gone", lambda: not _processes_of(run))
    saved = results_on_disk(run)
    assert 5 <= saved < len(ids), "the run had ended before anything was killed"
    again = hpc_dynamo("batch", *SIMULATOR, *TWO_NODES, "input=prompts.jsonl", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert results_on_disk(run) == len(ids), "a finished request was run again"
    assert answers(run / "output.jsonl") == undisturbed
    assert list(undisturbed) == ids


def _processes_of(run: Path) -> str:
    found = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, text=True)
    return found.stdout


@pytest.mark.slow
def test_dead_worker_is_restarted(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 40)
    # Both workers die every few requests, maybe more often than the default allows.
    often = ("engine.args.fail-after-requests=15", "engine.max_restarts=20", "batch.max_retries=12")
    words = (*often, "batch.concurrency=4")
    done = hpc_dynamo("batch", *SIMULATOR, *words, "input=prompts.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(answers(tmp_path / "runs/prompts/output.jsonl")) == ids
    assert "failed" in (latest(tmp_path / "runs/prompts").agent_log(0)).read_text()


@pytest.mark.slow
def test_stop_ends_run_and_second_run_is_rejected_meanwhile(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1000, max_tokens=4)
    run = _start(tmp_path, *SLOW)
    until_results(run, 1)
    second = hpc_dynamo("batch", *SIMULATOR, "input=prompts.jsonl", cwd=tmp_path)
    assert second.returncode == 1
    assert "is in use" in second.stderr
    shown = hpc_dynamo("status", "name=prompts", cwd=tmp_path)
    assert shown.returncode == 0
    assert "running" in shown.stdout
    stopped = hpc_dynamo("stop", "name=prompts", cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    until("no process left", lambda: not _processes_of(run), 10)  # the head reports before it ends


@pytest.mark.slow
def test_requests_in_progress_finish_before_walltime(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1000, max_tokens=16)
    run = _start(tmp_path, *SLOW)
    until_results(run, 1)
    attempt = latest(run)
    os.kill(next(iter(attempt.nodes())).pid, signal.SIGUSR2)  # as Slurm announces it
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 1
    assert "the walltime ended" in outcome.message
    status = attempt.status()
    assert status is not None
    assert status.progress.running == 0
    assert status.progress.done == results_on_disk(run) < 1000


def test_ctrl_c_ends_the_job(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1000, max_tokens=4)
    argv = [sys.executable, "-m", "hpc_dynamo", "batch", *SIMULATOR, *SLOW]
    process = subprocess.Popen(
        [*argv, "input=prompts.jsonl"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run = tmp_path / "runs/prompts"
    until_results(run, 1)
    os.killpg(process.pid, signal.SIGINT)  # a terminal signals the whole foreground group
    said, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, said
    assert "stopping the job" in said
    assert "run the same command again to resume" in said
    until("no process left", lambda: not _processes_of(run), 10)  # the head reports before it ends
