"""Errors of refused jobs and steps: the first sentence and the fields to change."""

import pytest

from hpc_dynamo.launch.refusal import step_error, submission_error

GENERAL = "sbatch: error: Batch job submission failed: "
NODE = f"{GENERAL}Requested node configuration is not available"

# As Slurm 22.05 writes it, unless another version is named.
REFUSALS = [
    (
        f"sbatch: error: CPU count per node can not be satisfied\n{NODE}",
        "CPU count per node can not be satisfied",
        "cluster.cpus_per_node",
    ),
    (
        f"sbatch: error: Memory specification can not be satisfied\n{NODE}",
        "Memory specification can not be satisfied",
        "cluster.memory_gb_per_node",
    ),
    (NODE, "Requested node configuration is not available", "cluster.slurm.gpu_type"),
    (
        f"sbatch: error: invalid partition specified: x\n{GENERAL}Invalid partition name specified",
        "invalid partition specified: x",
        "cluster.slurm.partition",
    ),
    (
        f"{GENERAL}Invalid account or account/partition combination specified",
        "Invalid account or account/partition combination specified",
        "cluster.slurm.account",
    ),
    (f"{GENERAL}Invalid qos specification", "Invalid qos specification", "cluster.slurm.qos"),
    (
        f"{GENERAL}Job violates accounting/QOS policy (job submit limit, user's size and/or time)",
        "Job violates accounting/QOS policy",
        "cluster.slurm.qos",
    ),
    (
        f"{GENERAL}Requested time limit is invalid (missing or exceeds some limit)",
        "Requested time limit is invalid",
        "cluster.slurm.time",
    ),
    ("sbatch: error: Invalid --time specification", "Invalid --time", "cluster.slurm.time"),
    (
        "sbatch: error: Invalid generic resource (gres) specification",
        "Invalid generic resource (gres) specification",
        "cluster.slurm.gpu_option",
    ),
    (f"{GENERAL}Invalid feature specification", "Invalid feature", "cluster.slurm.constraint"),
    (
        f"{GENERAL}Requested reservation is invalid",
        "Requested reservation",
        "cluster.slurm.reservation",
    ),
    (f"{GENERAL}Node count specification invalid", "Node count", "topology.nodes"),
    (f"{GENERAL}Invalid wckey specification", "Invalid wckey", "cluster.slurm.extra.wckey"),
    (
        "sbatch: option '--contiguous' doesn't allow an argument\n"
        'Try "sbatch --help" for more information',
        "option '--contiguous' doesn't allow an argument",
        "NAME=true for a flag",
    ),
    (
        "sbatch: unrecognized option '--nosuch=1'\nTry \"sbatch --help\" for more information",
        "unrecognized option '--nosuch=1'",
        "cluster.slurm.extra",
    ),
    (
        "sbatch: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        "--mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.",
        "cluster.slurm.memory_option",
    ),
    (  # a site's job_submit plugin
        "sbatch: Default project is used\nsbatch: error: Please give an account\n"
        f"{GENERAL}Unspecified error",
        "Please give an account",
        "cluster.slurm.account",
    ),
    (f"{GENERAL}Unable to contact slurm controller", "Unable to contact", "scontrol ping"),
    ("", "sbatch gave no reason", "cluster.slurm.partition"),
]


@pytest.mark.parametrize(("said", "first", "field"), REFUSALS, ids=[row[1] for row in REFUSALS])
def test_sbatch_refusal_shows_first_sentence_and_field(said: str, first: str, field: str) -> None:
    error = submission_error(said)
    assert error.message.startswith(f"sbatch refused the job: {first}")
    assert "\n" not in error.message
    assert "Try" not in error.message
    assert field in error.hint


STEPS = [
    (
        "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually "
        "exclusive.",
        "are mutually exclusive",
    ),
    (
        'srun: error: unrecognized --cpu-bind argument "foo"\n'
        "srun: fatal: Failed to parse --cpu-bind= values.",
        "Failed to parse --cpu-bind= values.",
    ),
    (
        "srun: error: Step requested GRES but job doesn't have GRES\n"
        "srun: error: Unable to create step for job 18: Invalid generic resource",
        "Unable to create step for job 18",
    ),
    (
        "srun: error: Couldn't find the specified plugin name for mpi/foo looking at all files\n"
        "srun: error: Invalid MPI type 'foo', --mpi=list for acceptable types",
        "Invalid MPI type 'foo'",
    ),
    ("srun: error: Only allocated 1 nodes asked for 9", "Only allocated 1 nodes asked for 9"),
    ("srun: unrecognized option '--bad'\nTry \"srun --help\"", "unrecognized option '--bad'"),
    (
        "slurmstepd-n1: error: execve(): /env/bin/python: No such file or directory",
        "/env/bin/python: No such file or directory",
    ),
]


@pytest.mark.parametrize(("log", "why"), STEPS, ids=[row[1] for row in STEPS])
def test_step_refused_by_srun_is_not_resumable(log: str, why: str) -> None:
    error = step_error(f"from the setup\n{log}\n")
    assert error is not None
    assert why in error.message


@pytest.mark.parametrize(
    "log",
    [
        "",
        "srun: error: n1: task 0: Killed",
        "srun: error: n1: task 0: Exited with exit code 1\nTraceback (most recent call last):",
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-29T22:00:00 DUE TO TIME LIMIT ***",
    ],
)
def test_end_of_a_started_step_is_not_a_refusal(log: str) -> None:
    assert step_error(log) is None
