"""Submitted from wherever users stand: a job, a step, an allocation, a login shell, a stale tmux.

And as sites have it: no exported environment, other forms of options. All over a real Slurm.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.support.runs import HANG_S, answers, hpc_dynamo, latest, until, write_prompts

pytestmark = pytest.mark.cluster

Done = subprocess.CompletedProcess[str]
WORDS = ("engine=simulator", "topology.nodes=2", "input=prompts.jsonl")
OWN_JOB = (*WORDS, "cluster.launcher=slurm")
COMMAND = (sys.executable, "-m", "hpc_dynamo")


@pytest.fixture
def folder(shared_dir: Path) -> Path:
    write_prompts(shared_dir / "prompts.jsonl", 3)
    return shared_dir


def run(
    cluster: SlurmCluster, folder: Path, *argv: str, env: Mapping[str, str] | None = None
) -> Done:
    environment = {**os.environ, "COLUMNS": "200", **cluster.env, **(env or {})}
    return subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_S
    )


def all_answered(done: Done, folder: Path) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(answers(folder / "runs/prompts/output.jsonl")) == 3


def written(file: Path) -> set[str]:
    """Names of the variables that `env > file` wrote."""
    return {line.partition("=")[0] for line in file.read_text().splitlines()}


LEAKS = {
    "SLURM_MEM_PER_CPU": "1000",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_HINT": "nomultithread",
    "SLURM_NTASKS": "7",
    "SLURM_EXPORT_ENV": "NONE",
    "SBATCH_TIMELIMIT": "soon",
    "PMIX_RANK": "3",
    "SUBMITIT_EXECUTOR": "local",
    "CUDA_VISIBLE_DEVICES": "5",
}


def test_variables_of_interactive_job_do_not_reach_job(cluster: SlurmCluster, folder: Path) -> None:
    seen = f"cluster.slurm.setup=['env > {folder}/seen']"
    env = {**LEAKS, "KEPT": "yes"}
    all_answered(run(cluster, folder, *COMMAND, "batch", *OWN_JOB, seen, env=env), folder)
    names = written(folder / "seen")
    theirs = {"SLURM_EXPORT_ENV", "SLURM_NTASKS"}  # Slurm sets them for the new job
    assert names & (LEAKS.keys() - theirs) == set()
    assert "KEPT" in names


@pytest.mark.parametrize("how", ["by its variable", "by an option"])
def test_submission_with_export_none_runs(cluster: SlurmCluster, folder: Path, how: str) -> None:
    """The step gets what the script has, not what the shell had; modules of the folder that it runs
    in stay out of it."""
    for name in ("select", "queue", "http", "json"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user has a {name}.py')\n")
    by_variable = how == "by its variable"
    option = () if by_variable else ("cluster.slurm.extra.export=NONE",)
    words = (*option, f"cluster.slurm.setup=['env > {folder}/seen']")
    env = {"LOST": "yes", **({"SBATCH_EXPORT": "NONE"} if by_variable else {})}
    command = (sys.executable, "-P", *COMMAND[1:])  # as the command hpc-dynamo itself
    done = run(cluster, folder, *command, "batch", *OWN_JOB, *words, env=env)
    all_answered(done, folder)
    assert "LOST" not in written(folder / "seen")


def test_submission_from_limited_step_runs(cluster: SlurmCluster, folder: Path) -> None:
    step = ("srun", "-N1", "--mem-per-cpu=500", "--cpu-bind=none", "--export=ALL", *COMMAND)
    all_answered(run(cluster, folder, *step, "batch", *OWN_JOB), folder)


def test_submission_from_inside_job_runs(cluster: SlurmCluster, folder: Path) -> None:
    inner = shlex.join(
        (*COMMAND, "batch", *OWN_JOB, f"cluster.slurm.setup=['env > {folder}/seen']")
    )
    sbatch = ("sbatch", "--wait", "--mem-per-cpu=500", "--cpus-per-task=1", "--gpus-per-node=1")
    done = run(cluster, folder, *sbatch, f"--output={folder}/log", f"--wrap={inner}")
    assert done.returncode == 0, (folder / "log").read_text()
    assert len(answers(folder / "runs/prompts/output.jsonl")) == 3
    assert not {"SLURM_MEM_PER_CPU", "CUDA_VISIBLE_DEVICES"} & written(folder / "seen")


def test_submission_from_login_shell_runs(cluster: SlurmCluster, folder: Path) -> None:
    inner = shlex.join((*COMMAND, "batch", *OWN_JOB))
    all_answered(run(cluster, folder, "bash", "-lc", inner), folder)


def test_allocation_uses_gpus_reported_by_slurm(cluster: SlurmCluster, folder: Path) -> None:
    """Also with options of srun in the shell, and with fewer CPUs than requested."""
    salloc = ("salloc", "--nodes=2", "--gpus-per-node=2", "--mem-per-cpu=4000", "--cpus-per-task=2")
    inner = (*COMMAND, "batch", *WORDS, "engine.device=cuda", "topology.prefill.workers=3")
    leaks = {"SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_EXPORT_ENV": "NONE", "PMI_RANK": "1"}
    shell = " ".join(f"export {name}={value};" for name, value in leaks.items())
    done = run(cluster, folder, *salloc, "bash", "-c", f"{shell} {shlex.join(inner)}")
    all_answered(done, folder)
    plan = latest(folder / "runs/prompts").plan()
    assert (plan.nodes, plan.gpus_per_node) == (2, 2)
    assert latest(folder / "runs/prompts").config().cluster.cpus_per_node == 2


def test_too_small_allocation_suggests_remedy(cluster: SlurmCluster, folder: Path) -> None:
    done = run(cluster, folder, "salloc", "--nodes=1", *COMMAND, "batch", *WORDS)
    assert done.returncode == 1
    assert "this allocation has 1 nodes, the topology needs 2" in done.stderr
    assert "cluster.launcher=slurm" in done.stderr


def test_doctor_in_an_allocation_counts_its_gpus(cluster: SlurmCluster, folder: Path) -> None:
    words = ("engine=simulator", "engine.device=cuda", "--json", "found.json")
    salloc = ("salloc", "--nodes=2", "--gpus-per-node=2")
    done = run(cluster, folder, *salloc, *COMMAND, "doctor", *words)
    report = json.loads((folder / "found.json").read_text())
    counts = [len(node["facts"]["gpus_visible"]) for node in report["nodes"]]
    assert counts == [2, 2], done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["over", "unknown", "of another user"])
def test_stale_job_id_is_reported_before_anything_starts(
    cluster: SlurmCluster, folder: Path, kind: str
) -> None:
    """As in a tmux that outlived its job, or on another cluster."""
    words = {"over": ["--wrap=true"], "of another user": ["--uid=65534", "--wrap=sleep 99"]}
    job = "99999"
    if kind in words:
        sbatch = ("sbatch", "--parsable", "--output=/dev/null", "--chdir=/", *words[kind])
        job = cluster.slurm(*sbatch).strip()
        wanted = "COMPLETED" if kind == "over" else "RUNNING"
        until(wanted, lambda: f"JobState={wanted}" in cluster.slurm("scontrol", "show", "job", job))
    stale = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "2"}
    try:
        done = run(cluster, folder, *COMMAND, "batch", *WORDS, env=stale)
    finally:
        cluster.slurm("scancel", "--quiet", job)
    assert done.returncode == 3
    assert f"SLURM_JOB_ID={job} names no running job of yours" in done.stderr
    assert "`unset SLURM_JOB_ID`" in done.stderr
    assert "cluster.launcher=slurm" in done.stderr
    assert not (folder / "runs").exists()


def test_remedies_for_a_stale_job_id_work(cluster: SlurmCluster, folder: Path) -> None:
    stale = {"SLURM_JOB_ID": "99999", **LEAKS}
    all_answered(run(cluster, folder, *COMMAND, "batch", *OWN_JOB, env=stale), folder)
    again = f"unset SLURM_JOB_ID; {shlex.join((*COMMAND, 'batch', *WORDS, 'name=two'))}"
    done = run(cluster, folder, "bash", "-c", again, env=stale)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slurm job" in done.stdout


def test_dry_run_equals_submitted_script(cluster: SlurmCluster, folder: Path) -> None:
    """Slurm's own record of the script, byte for byte."""
    words = (
        *OWN_JOB,
        *("cluster.slurm.extra.no-requeue=true", "cluster.slurm.extra.mem-per-cpu=300M"),
        *("cluster.slurm.setup=['echo from the setup']", "cluster.slurm.signal_before_end_s=75"),
        *("name=it is", "cluster.slurm.time=5"),
    )
    planned = hpc_dynamo("plan", "--dry-run", *words, cwd=folder, env=cluster.env)
    assert planned.returncode == 0, planned.stderr
    done = run(cluster, folder, *COMMAND, "batch", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    job = latest(folder / "runs/it is").job()
    assert job is not None
    cluster.slurm("scontrol", "write", "batch_script", job.job_id, folder / "kept")
    assert (folder / "kept").read_text().rstrip("\0") == planned.stdout


def test_refusal_of_sbatch_is_shown_once(cluster: SlurmCluster, folder: Path) -> None:
    wrong = "cluster.slurm.extra.contiguous=maybe"
    done = run(cluster, folder, *COMMAND, "batch", *OWN_JOB, wrong)
    assert done.returncode == 1
    assert done.stderr.count("'--contiguous' doesn't allow an argument") == 1
    assert "NAME=true for a flag" in done.stderr
    assert "--help for" not in done.stderr


def test_step_that_srun_refuses_is_not_resumed(cluster: SlurmCluster, folder: Path) -> None:
    done = run(cluster, folder, *COMMAND, "batch", *OWN_JOB, "cluster.slurm.srun_args=[--bad]")
    assert done.returncode == 1
    assert "unrecognized option '--bad'" in done.stderr
    assert "cluster.slurm.srun_args" in done.stderr
    assert "same command" not in done.stderr


FORMS = {
    "no line about GPUs": ["cluster.slurm.gpu_option=none"],
    "of the job": ["cluster.slurm.gpu_option=gpus"],
    "of the task": ["cluster.slurm.gpu_option=gpus-per-task"],
    "gres": ["cluster.slurm.gpu_option=gres", "cluster.slurm.memory_option=mem-per-cpu"],
    "one's own": ["cluster.slurm.extra.gres=gpu:2", "cluster.slurm.extra.contiguous="],
    "no line about memory": ["cluster.slurm.memory_option=none"],
    "all memory": ["cluster.memory_gb_per_node=0"],
}


@pytest.mark.parametrize("form", FORMS)
def test_resource_request_forms_are_accepted(
    cluster: SlurmCluster, folder: Path, form: str
) -> None:
    """Real Slurm takes each and starts the layout. A fake GPU is visible only if it
    is requested. The form without a request skips the check of visible GPUs."""
    words = ("engine.device=cuda", "cluster.gpus_per_node=2", *FORMS[form], "--no-preflight")
    all_answered(run(cluster, folder, *COMMAND, "batch", *OWN_JOB, *words), folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["topology.nodes=5"], "the layout needs 5 nodes, partition test has 3"),
        (["cluster.slurm.partition=east"], "the layout needs 2 nodes, partition east has 1"),
        (["cluster.cpus_per_node=9"], "cluster.cpus_per_node=9: a node of partition test has 8"),
        (["cluster.memory_gb_per_node=99"], "cluster.memory_gb_per_node=99: a node of"),
        (["engine.device=cuda", "cluster.gpus_per_node=4"], "have 2 GPUs at most"),
    ],
)
def test_layout_that_can_never_run_is_refused_before_submission(
    cluster: SlurmCluster, folder: Path, words: list[str], said: str
) -> None:
    for verb in ("plan", "batch"):
        done = run(cluster, folder, *COMMAND, verb, *OWN_JOB, *words)
        assert (done.returncode, said in done.stderr) == (3, True), done.stdout + done.stderr


def test_requests_do_not_exceed_nodes(cluster: SlurmCluster, folder: Path) -> None:
    """A node has 8 CPUs and 16,000 MB; the workers would like 26 and 52 GB."""
    words = ("engine.cpus=12", "engine.memory_gb=24", "topology.nodes=1")
    done = run(cluster, folder, *COMMAND, "batch", *OWN_JOB, *words)
    all_answered(done, folder)
    job = latest(folder / "runs/prompts").job()
    assert job is not None
    assert "cpu=8,mem=16000M" in cluster.slurm("scontrol", "show", "job", job.job_id)
