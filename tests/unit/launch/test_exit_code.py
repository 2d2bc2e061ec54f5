"""End of a job whose step has ended: exit code, and requeue after the reboot of a node."""

import os
from pathlib import Path

import pytest

from hpc_dynamo.launch.exit_code import main
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt, write_json

# A program in place of scontrol. Slurm's times have no zone.
SCONTROL = """\
#!/bin/sh
case "$*" in
  "--oneliner show job 42")
    echo "JobId=42 JobState={state} StartTime=2026-01-01T10:00:00 NodeList=n[1-2]";;
  "--oneliner show node n[1-2]")
    echo "NodeName=n1 SlurmdStartTime=2025-12-01T10:00:00 OS=Linux 6.1 #1 SMP"
    echo "NodeName=n2 SlurmdStartTime={slurmd}";;
  "requeue 42") touch {requeued};;
  *) exit 1;;
esac
"""
BEFORE, LATER = "2025-12-31T10:00:00", "2026-01-01T10:30:00"

CASES = {
    # state of the job, start of slurmd on n2, exit code of srun, is it requeued
    "rebooted": ("RUNNING", LATER, 137, True),
    "no reboot": ("RUNNING", BEFORE, 137, False),
    "down": ("RUNNING", "None", 137, False),
    "cancelled": ("CANCELLED", LATER, 137, False),
    "no failure": ("RUNNING", LATER, 0, False),
    "no answer": ("'", LATER, 137, False),
}


@pytest.mark.parametrize("case", CASES)
def test_job_is_requeued_if_a_reboot_ended_its_step(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    state, slurmd, code, expected = CASES[case]
    requeued, scontrol = tmp_path / "requeued", tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(SCONTROL.format(state=state, slurmd=slurmd, requeued=requeued))
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert main(attempt, code) == code
    assert requeued.exists() is expected
    requeued.unlink(missing_ok=True)
    write_json(attempt.outcome_file, Outcome(exit_code=4))
    assert main(attempt, code) == 4
    assert not requeued.exists(), "the run has ended"
