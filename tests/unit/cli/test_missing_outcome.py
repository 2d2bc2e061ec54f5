"""Report on a job that left no outcome: its cause, and the advice to resume if that can help."""

from dataclasses import replace

import pytest

from hpc_dynamo.cli.missing_outcome import missing_outcome
from hpc_dynamo.config import Config, Task
from hpc_dynamo.launch.reasons import NEVER_RAN
from hpc_dynamo.messages import NodeRecord
from hpc_dynamo.run import Attempt, Run, write_json
from hpc_dynamo.topology import Plan

AGAIN = "run the same command again"
FAILED = "its script failed (JobState=FAILED, ExitCode=1:0)"


def ended(
    attempt: Attempt, *lines: str, detail: str = FAILED, ran: bool = False, cancelled: bool = False
) -> str:
    (attempt.submitit / "42_0_log.err").write_text("\n".join(lines) + "\n")
    if ran:
        node = NodeRecord(node=0, host="n7", address="10.0.0.7", pid=1, log="")
        write_json(attempt.node_file(0), node)
    outcome = missing_outcome(attempt, detail, cancelled=cancelled)
    assert outcome.exit_code == 1
    return outcome.message


@pytest.mark.parametrize(
    "line",
    [
        "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU are mutually exclusive.",
        "srun: fatal: Failed to parse --cpu-bind= values",
        "slurmstepd: error: execve(): /env/bin/python: No such file or directory",
        "/var/spool/slurm/job42/slurm_script: line 7: module: command not found",
        "RuntimeError: Could not figure out which environment the job is runnning in",
        "bash: /home/me/.bashrc: Permission denied",
    ],
)
def test_job_whose_program_never_started_gets_no_advice_to_resume(
    line: str, attempt: Attempt
) -> None:
    said = ended(attempt, "some line", line, "and a last one")
    assert f"42_0_log.err: {line}" in said
    assert AGAIN not in said
    assert "hpc-dynamo never started" in said
    assert f"without reporting a result: {FAILED}" in said


@pytest.mark.parametrize(
    "detail",
    [
        "its walltime was over (JobState=TIMEOUT)",
        "a node failed (JobState=NODE_FAIL)",
        "a job of higher priority took its nodes (JobState=PREEMPTED)",
        "ended",
    ],
)
def test_job_that_ran_gets_the_advice_to_resume(detail: str, attempt: Attempt) -> None:
    said = ended(
        attempt, "slurmstepd: error: *** JOB 42 CANCELLED AT 12:00", detail=detail, ran=True
    )
    assert f"try: {AGAIN} to resume the batch" in said


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 28] No space left on device",
        "OSError: [Errno 122] Disk quota exceeded: '/home/me/runs'",
    ],
)
def test_full_disk_is_reported(line: str, attempt: Attempt) -> None:
    said = ended(attempt, "--- Logging error ---", line, "Arguments: ()", ran=True)
    assert line in said
    assert "is full: free some space, then run the same command again to resume" in said


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=42.0", FAILED),
        ("", "it used more memory than it requested (JobState=OUT_OF_MEMORY)"),
    ],
)
def test_out_of_memory_is_reported(line: str, detail: str, attempt: Attempt) -> None:
    said = ended(attempt, line, detail=detail, ran=True)
    assert "try: more cluster.memory_gb_per_node, then run the same" in said


def test_cancelled_job_is_not_reported_as_a_failure(attempt: Attempt) -> None:
    assert ended(attempt, detail=NEVER_RAN) == "the job was cancelled before it started"
    said = ended(attempt, detail="ended", ran=True, cancelled=True)
    assert said == f"stopped; {AGAIN} to resume the batch"


def test_advice_for_an_endpoint_does_not_mention_resuming(run: Run) -> None:
    attempt = run.new_attempt(replace(Config(), task=Task.serve), Plan(1, 0, ()))
    assert ended(attempt, ran=True).endswith(f"try: {AGAIN}")
