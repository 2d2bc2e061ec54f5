"""A job inherits the user's environment and no variable of an enclosing job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.launch import environment, sbatch_script, slurm
from hpc_dynamo.process.child import LOGIN_HOST, clean_environment
from hpc_dynamo.run import Run
from hpc_dynamo.tasks import node
from hpc_dynamo.topology import plan

OF_A_JOB = {
    # An interactive job's options, which sbatch and srun would take as their own.
    "SLURM_MEM_PER_CPU": "1000",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_HINT": "x",
    "SLURM_CPU_BIND_TYPE": "mask_cpu:",
    "SLURM_EXPORT_ENV": "NONE",
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_GPUS": "9",
    "SBATCH_MEM_PER_NODE": "1",
    "SRUN_DEBUG": "3",
    "SLURM_NTASKS": "7",
    "SLURM_DISTRIBUTION": "cyclic",
    "SLURM_EXACT": "1",
    # The job itself, and its ranks.
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "0",
    "SLURMD_NODENAME": "n7",
    "PMI_RANK": "0",
    "PMIX_RANK": "0",
    "PMI2_FD": "3",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PRTE_X": "1",
    "PALS_X": "1",
    "OMPI_MCA_orte_hnp_uri": "x",
    "MPI_LOCALRANKID": "0",
    "SUBMITIT_EXECUTOR": "slurm",
    "CUDA_VISIBLE_DEVICES": "3",
    "TMPDIR": "/scratch/job.4711",
    "SQUEUE_STATES": "PD",
}
OF_THE_USER = {
    "SLURM_CONF": "/site/slurm.conf",
    "SLURM_CLUSTERS": "two",
    "SLURM_JWT": "secret",
    "SBATCH_ACCOUNT": "g42",
    "OMPI_MCA_btl_tcp_if_include": "ib0",
    "HF_HOME": "/hf",
    "A": "é=,",
}


@pytest.fixture(autouse=True)
def inside_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (OF_A_JOB | OF_THE_USER).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login1")


def left(env: dict[str, str], wanted: dict[str, str]) -> dict[str, str]:
    return {name: env[name] for name in wanted if name in env}


def test_submission_drops_variables_of_enclosing_job() -> None:
    env = environment.for_submission(())
    assert left(env, OF_A_JOB) == {}
    assert left(env, OF_THE_USER) == OF_THE_USER
    assert env[LOGIN_HOST] == "login1"


def test_configured_field_overrides_sbatch_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """sbatch would prefer the variable to the script's line."""
    monkeypatch.setenv("SBATCH_PARTITION", "long")
    assert environment.for_submission(())["SBATCH_PARTITION"] == "long"
    env = environment.for_submission(("partition", "nodes"))
    assert "SBATCH_PARTITION" not in env
    assert env["SBATCH_ACCOUNT"] == "g42"


CHILD = "import os, sys; print(os.getcwd() in sys.path, '' in sys.path, '/mine' in sys.path)"


def test_children_import_from_pythonpath_not_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    environments = [
        clean_environment({}),
        environment.for_submission(()),
        environment.for_step(),
        environment.for_step(allocation=False),
    ]
    for env in environments:
        argv = [sys.executable, "-c", CHILD]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.stdout == "False False True\n", done.stderr


def test_engine_env_can_allow_imports_from_the_current_folder() -> None:
    assert clean_environment({"PYTHONSAFEPATH": ""})["PYTHONSAFEPATH"] == ""


@pytest.mark.parametrize("export", ["ALL", "NONE"])
def test_job_without_inherited_environment_does_not_import_from_folder(
    run: Run, export: str
) -> None:
    config = compose(["engine=simulator", f"cluster.slurm.extra.export={export}"])
    attempt, layout = run.new_attempt(config, plan(config)), plan(config)
    for text in (
        sbatch_script.submission_script(attempt, config, layout),
        sbatch_script.hetjob_script(attempt, config, layout, "hpc_dynamo.tasks.node"),
    ):
        lines = text.splitlines()
        (srun,) = (n for n, line in enumerate(lines) if line.startswith("srun "))
        assert lines.index("export PYTHONSAFEPATH=1") < srun
        assert "--export=ALL" in lines[srun]


def test_tmpdir_not_named_after_job_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/scratch/14711")
    assert environment.for_submission(())["TMPDIR"] == "/scratch/14711"


def test_step_environment_keeps_allocation_and_drops_options() -> None:
    env = environment.for_step()
    allocation = {"SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES", "TMPDIR"}  # a step's own, all three
    assert left(env, OF_A_JOB).keys() == allocation
    assert left(environment.for_step(allocation=False), OF_A_JOB).keys() == allocation - {
        "SLURM_JOB_ID"
    }


def test_environment_is_restored_after_submission() -> None:
    before = dict(os.environ)
    with environment.applied({"ONLY": "this"}):
        argv = [sys.executable, "-c", "import os; print(sorted(os.environ))"]
        seen = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert "'ONLY'" in seen
        assert "SLURM_JOB_ID" not in seen
    assert dict(os.environ) == before


def test_sbatch_gets_submission_environment(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program in sbatch's place that writes its environment down."""
    for name in ("sbatch", "srun"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho Submitted batch job 42\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = compose(["engine=simulator", "cluster.slurm.account=mine"])
    slurm.submit(run.new_attempt(config, plan(config)), config, plan(config), node.main)
    seen = (tmp_path / "seen").read_text()
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert names & OF_A_JOB.keys() == set()
    assert "SBATCH_ACCOUNT" not in names, "the configuration names an account"
    assert {"SLURM_CONF", "SLURM_JWT", "HF_HOME", LOGIN_HOST} <= names
