"""Submission of extra jobs to Slurm, and jobs that their head left behind."""

import os
import shlex
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.bootstrap.address import LOOPBACK, address_for_extra_jobs
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.render.serving import extra_job_line
from hpc_dynamo.config import Config, Launcher, Role, Task
from hpc_dynamo.errors import ConfigError, LaunchError
from hpc_dynamo.launch import extra_jobs
from hpc_dynamo.messages import ExtraJobState, ExtraJobStatus, JobRecord, NodeRecord, Roster
from hpc_dynamo.run import Attempt, ExtraJobFolder, Run, write_json
from hpc_dynamo.topology import Plan, plan, plan_extra_job

WORDS = (
    *(
        "engine=simulator",
        "planner=load",
        "planner.scale_out.max_nodes=4",
        "planner.scale_out.nodes_per_job=2",
    ),
    *("topology.prefill.workers=1", "topology.decode.workers=1", "name=day"),
    *("cluster.slurm.partition=gpu", "cluster.slurm.time=12:00:00"),
)
SBATCH = """#!/bin/sh
echo "$SBATCH_NO_REQUEUE $SLURM_JOB_ID $SLURM_CONF" > {calls}
[ -e {refuse} ] && echo 'sbatch: error: invalid partition' >&2 && exit 1
echo Submitted batch job 42
"""
SQUEUE = "#!/bin/sh\necho 'PENDING|Priority|N/A|'\n"
SCANCEL = '#!/bin/sh\necho "$@" > {calls}\n'


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record of sbatch's environment and scancel's arguments, inside job 7."""
    folder, file = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(calls=file, refuse=tmp_path / "refuse"))
    (folder / "squeue").write_text(SQUEUE)
    (folder / "scancel").write_text(SCANCEL.format(calls=file))
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/my.conf")
    return file


@pytest.fixture
def attempt(run: Run) -> Attempt:
    config = replace(compose(WORDS), task=Task.serve)
    return run.new_attempt(config, plan(config))


def job_of(attempt: Attempt) -> ExtraJobFolder:
    layout = plan_extra_job(attempt.config().topology, attempt.plan(), Role.decode, 2).shifted(2, 1)
    return attempt.new_extra_job(layout)


async def test_submission_requests_nodes_and_walltime_of_the_job(
    attempt: Attempt, calls: Path
) -> None:
    job = job_of(attempt)
    assert await extra_jobs.submit(job, time_s=1000.0) == "42"
    record = job.job()
    assert record
    assert (record.launcher, record.job_id) == ("slurm", "42")
    assert calls.read_text().split() == ["1", "/etc/my.conf"], "no trace of our own job"
    (script,) = job.submitit.glob("42_submission.sh")
    words = shlex.split(script.read_text(), comments=False)
    asked = {"--nodes=2", "--time=16", "--job-name=hpc-dynamo-day+1", "--partition=gpu"}
    assert asked | {"--mpi=none"} <= set(words)


async def test_refused_submission_reports_the_reason(attempt: Attempt, calls: Path) -> None:
    (calls.parent / "refuse").touch()
    with pytest.raises(LaunchError, match="invalid partition"):
        await extra_jobs.submit(job_of(attempt), time_s=1000.0)


def status(job: ExtraJobFolder, **more: Any) -> ExtraJobStatus:
    ranks, now = tuple(word.rank for word in job.plan().workers), time.time()
    return ExtraJobStatus(
        number=job.number, role=Role.decode, nodes=2, ranks=ranks, job_id="42", requested_at=now,
        **more,
    )  # fmt: skip


def test_leftover_job_is_cancelled_and_its_node_hours_count(attempt: Attempt, calls: Path) -> None:
    job, now = job_of(attempt), time.time()
    write_json(job.job_file, JobRecord(launcher="slurm", job_id="42"))
    state = status(
        job, state=ExtraJobState.running, running_since=now - 3600.0, running_until=now - 1800.0
    )
    write_json(job.state_file, state)
    extra_jobs.stop_leftover_jobs(attempt.extra_jobs(), heartbeat_timeout_s=900.0)
    assert calls.read_text().split() == ["42"]
    after = job.state()
    assert after
    assert (after.state, after.detail) == (ExtraJobState.ended, "stopped after its head died")
    assert after.node_hours == pytest.approx(2 * 0.75), "its agents ended when they missed it"
    calls.unlink()
    extra_jobs.stop_leftover_jobs(attempt.extra_jobs(), heartbeat_timeout_s=900.0)
    assert not calls.exists(), "what has ended is left alone"


def test_status_shows_job_ranks_and_reason(attempt: Attempt) -> None:
    line = extra_job_line(status(job_of(attempt), detail="Slurm says pending, reason: Priority"))
    assert line == (
        "extra job 42 pending, 2 node(s), decode 2, 3, 4, 5: Slurm says pending, reason: Priority"
    )


def test_local_launcher_refuses_scale_out_with_gpus(attempt: Attempt) -> None:
    config, layout = attempt.config(), attempt.plan()
    extra_jobs.check_extra_jobs(config, layout, Launcher.local)
    on_gpus = Plan(1, 4, layout.workers)
    extra_jobs.check_extra_jobs(config, on_gpus, Launcher.slurm)
    with pytest.raises(ConfigError, match=r"planner\.scale_out needs Slurm"):
        extra_jobs.check_extra_jobs(config, on_gpus, Launcher.local)
    extra_jobs.check_extra_jobs(Config(), on_gpus, Launcher.local)


def test_head_with_extra_jobs_uses_a_reachable_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_SUBMIT_HOST", socket.gethostname())
    assert address_for_extra_jobs("10.0.0.7") == "10.0.0.7"
    assert address_for_extra_jobs(LOOPBACK) == LOOPBACK, "extra jobs run on this machine, too"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert address_for_extra_jobs("10.0.0.7") == "10.0.0.7"
    with pytest.raises(ConfigError, match="an address of this node that other nodes can reach"):
        address_for_extra_jobs(LOOPBACK)


@pytest.mark.parametrize(
    ("state", "restart_count", "submitted_at", "continues"),
    [
        (ExtraJobState.pending, 0, 50.0, True),  # submitted together with the head's job
        (ExtraJobState.running, 0, 150.0, True),
        (ExtraJobState.draining, 0, 150.0, False),
        (ExtraJobState.ended, 0, 150.0, False),
        (ExtraJobState.running, 1, 50.0, False),  # before the head's job was requeued
        (ExtraJobState.running, 1, 150.0, True),
        (None, 0, 150.0, False),
    ],
)
def test_restarted_head_continues_with_jobs_of_its_execution(
    attempt: Attempt,
    state: ExtraJobState | None,
    restart_count: int,
    submitted_at: float,
    continues: bool,
) -> None:
    node = NodeRecord(node=0, host="n0", address="", pid=1, log="", started_at=100.0)
    roster = Roster(nodes=(node,), method="tcp", seconds=0.0, restart_count=restart_count)
    folder = attempt.new_extra_job(attempt.plan())
    record = JobRecord(launcher="local", job_id="5", submitted_at=submitted_at)
    write_json(folder.job_file, record)
    if state:
        status = ExtraJobStatus(
            number=1, role=Role.decode, nodes=1, ranks=(2,), requested_at=50.0, state=state
        )
        write_json(folder.state_file, status)
    found = [job.number for job in extra_jobs.current_jobs(attempt, roster)]
    assert found == ([1] if continues else [])
