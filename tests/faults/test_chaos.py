"""`hpc-dynamo chaos`: faults from a seed in a run on this machine."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hpc_dynamo.cli.chaos import on_node
from hpc_dynamo.cli.chaos.schedule import Process, ProcessKind, schedule
from hpc_dynamo.messages import WorkerState
from tests.cluster.slurm import SlurmCluster
from tests.integration.serving.served import Served, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import (
    HANG_S,
    each_once,
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

PROCESSES = [
    *(Process(ProcessKind.engine, rank, "n1") for rank in range(3)),
    Process(ProcessKind.frontend, 0, "n1"),
    Process(ProcessKind.head, 0, "n1"),
]


def test_schedule_depends_only_on_the_seed() -> None:
    first = schedule(7, PROCESSES, 50)
    assert schedule(7, PROCESSES, 50) == first != schedule(8, PROCESSES, 50)
    assert {fault.process for fault in first} == set(PROCESSES)
    assert {bool(fault.stop_s) for fault in first} == {True, False}


def test_only_processes_of_an_agent_are_signalled() -> None:
    """A process id in a run folder may belong to another program since."""
    argv = [sys.executable, "-I", "-S", on_node.__file__, str(int(signal.SIGKILL))]
    with subprocess.Popen(["sleep", "60"]) as other:
        done = subprocess.run([*argv, str(other.pid)], capture_output=True, text=True)
        assert done.returncode == 1
        assert "is no agent" in done.stderr
        assert other.poll() is None
        other.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("chaos")
    words = ("topology=aggregated", "topology.aggregated.workers=2", "serve.frontend_processes=1")
    with serving(folder, *words) as served:
        until("both workers in its status file", lambda: ready(served) == 2)
        yield served


def ready(served: Served) -> int:
    """Return the count of ready workers in the file that `chaos` reads."""
    status = served.attempt.status()
    return sum(w.state is WorkerState.ready for w in status.workers) if status else 0


def chaos(served: Served, *words: str) -> list[str]:
    return [sys.executable, "-m", "hpc_dynamo", "chaos", str(served.attempt.run.path), *words]


def test_faults_are_listed_and_injected(
    served: Served, tmp_path: Path, fault: FaultRecorder
) -> None:
    words = ("--only=engine", "--faults=2", "--interval=3", f"--seed={5 + fault.seed}", "--rate=4")
    run = str(served.attempt.run.path)
    listed = hpc_dynamo("chaos", run, *words, "--dry-run", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    faults = listed.stdout.splitlines()
    assert len(faults) == 2
    row = fault("`hpc-dynamo chaos`: two random faults of engines", "no request is lost")
    done = hpc_dynamo("chaos", run, *words, cwd=tmp_path)
    rows = done.stdout.splitlines()
    assert all(map(str.startswith, rows[:2], faults)), done.stderr
    # On a busy machine the engine may not be back for the second.
    assert "answers after" in rows[0]
    sent, lost = re.findall(r"\d+", rows[2])
    row.requests(int(sent), int(lost))


def test_interrupt_resumes_stopped_processes(served: Served) -> None:
    words = ("--only=head", "--faults=1", "--interval=1", f"--seed={_seed_of_a_stop(served)}")
    process = subprocess.Popen(chaos(served, *words), stdout=subprocess.PIPE, text=True)
    until("the SIGSTOP", lambda: _state(served.head) == "T", 30)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=HANG_S)
    assert "interrupted" in output
    assert _state(served.head) != "T"


def _seed_of_a_stop(served: Served) -> int:
    host = next(served.attempt.nodes()).host
    head = [Process(ProcessKind.head, 0, host)]
    return next(seed for seed in range(100) if schedule(seed, head, 1)[0].stop_s)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_run_of_another_user_is_refused(served: Served, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    path = served.attempt.run.path
    os.chown(path, 12345, -1)
    try:
        refused = hpc_dynamo("chaos", str(path), "--dry-run", cwd=tmp_path)
    finally:
        os.chown(path, 0, -1)
    assert refused.returncode != 0
    assert "belongs to another user" in refused.stderr


BATCH = (
    *("batch", "engine=simulator", "topology=aggregated", "topology.aggregated.workers=2"),
    *("engine.args.time-scale=20", "batch.concurrency=4", "input=prompts.jsonl", "--detach"),
)


def faults_in_a_batch(folder: Path, *words: str, env: Mapping[str, str] | None = None) -> None:
    """Kill two engines of a batch; it ends with each result once."""
    ids, run = write_prompts(folder / "prompts.jsonl", 60, max_tokens=16), folder / "runs/prompts"
    started = hpc_dynamo(*BATCH, *words, cwd=folder, env=env)
    assert started.returncode == 0, started.stderr
    until_results(run, 4)
    kinds = ("--only=engine", "--faults=2", "--interval=1", "--seed=1")
    done = hpc_dynamo("chaos", *kinds, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answers after" in done.stdout
    assert " requests, 0 lost" in done.stdout
    until("the output", (run / "output.jsonl").exists, 120)
    each_once(run, ids)
    until("the outcome", latest(run).outcome)
    refused = hpc_dynamo("chaos", "prompts", cwd=folder, env=env)
    assert "is no batch that runs now" in refused.stderr


def test_faults_in_a_batch(tmp_path: Path) -> None:
    faults_in_a_batch(tmp_path, "cluster.launcher=local")


@pytest.mark.cluster
@pytest.mark.slow_fault
def test_faults_on_all_nodes_of_a_slurm_job(cluster: SlurmCluster, shared_dir: Path) -> None:
    """The signals reach other nodes by a Slurm step."""
    words = ("cluster.launcher=slurm", "topology.nodes=2")
    faults_in_a_batch(shared_dir, *words, env=cluster.env)
