"""Enclosing allocation, by `scontrol --details show job` of Slurm 22.05."""

import os
from pathlib import Path

import pytest

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch.current_allocation import (
    Allocation,
    current_allocation,
    parse_allocation,
    require_allocation,
)

SHOWN = """\
JobId=7 JobName=interactive
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=n[1-3]
   NumNodes=3 NumCPUs=34 NumTasks=3 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   JOB_GRES=gpu:a100:10
     Nodes=n[1-2] CPU_IDs=0-15,32 Mem=65536 GRES=gpu:a100:4(IDX:0-3)
     Nodes=n3 CPU_IDs=0 Mem=32768 GRES=gpu:a100:1(IDX:0),gpu:v100:1(IDX:1),nvme:1
   MinCPUsNode=1 MinMemoryNode=0 MinTmpDiskNode=0
"""


def test_allocation_reports_its_smallest_node() -> None:
    assert parse_allocation(SHOWN) == Allocation(cpus=1, memory_gb=32.0, gpus=2)
    without = SHOWN.replace("     Nodes=n3", "   Not=n3").replace("GRES=gpu:a100:4", "GRES=gpu:4")
    assert parse_allocation(without) == Allocation(cpus=17, memory_gb=64.0, gpus=4)


def test_unknown_scontrol_output_gives_empty_allocation() -> None:
    assert parse_allocation("") == Allocation()
    assert parse_allocation(SHOWN + SHOWN) == Allocation(), "a heterogeneous job"


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program in its place."""
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")


def test_ended_job_id_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, monkeypatch, "echo 'error: Invalid job id specified' >&2; exit 1")
    assert current_allocation() is None
    with pytest.raises(ConfigError, match="SLURM_JOB_ID=7 names no running job") as error:
        require_allocation()
    assert "`unset SLURM_JOB_ID`" in error.value.hint
    assert "cluster.launcher=slurm" in error.value.hint


def test_silent_controller_does_not_reject_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(tmp_path, monkeypatch, "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert current_allocation() is None
    assert require_allocation() == Allocation()


def test_no_job_id_means_no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert current_allocation() is None
    with pytest.raises(ConfigError, match="SLURM_JOB_ID is not set"):
        require_allocation()
