"""Environments of commands, jobs and steps: the user's own, without that of the enclosing job.

sbatch and srun also read most of their options from the environment, and Slurm sets the same names
in jobs and steps. Without cleaning, a command inside a job would take the limits of that job as its
own options. A job inherits the environment of its submission.

Sources: "INPUT ENVIRONMENT VARIABLES" of sbatch(1), srun(1) and salloc(1), Slurm 22.05 to 25.05.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from hpc_dynamo.process.child import LOGIN_HOST, clean_environment

# Slurm's commands find and trust their controller by these. Slurm sets none of them for a job.
SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_SOCKET")
# A user's or a site's defaults for sbatch: account, partition, export, requeue. Slurm does not set
# these for a job. sbatch prefers them to the lines of a script, so each is kept only if the script
# has no such option.
DEFAULTS = {
    "account": "SBATCH_ACCOUNT",
    "clusters": "SBATCH_CLUSTERS",
    "constraint": "SBATCH_CONSTRAINT",
    "export": "SBATCH_EXPORT",
    "get-user-env": "SBATCH_GET_USER_ENV",
    "no-requeue": "SBATCH_NO_REQUEUE",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "requeue": "SBATCH_REQUEUE",
    "reservation": "SBATCH_RESERVATION",
    "wckey": "SBATCH_WCKEY",
}
# Slurm names a job's GPUs in these. A new job has other GPUs.
GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL")
SCRATCH = ("TMPDIR", "TMP", "TEMP")
# The allocation itself, as opposed to options and steps in it.
ALLOCATION = ("SLURM_JOB_", "SLURM_HET_", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT")


def for_commands() -> dict[str, str]:
    """Return the environment for Slurm's commands, which only need to find their controller."""
    return clean_environment(_site_variables())


def for_submission(options: Collection[str]) -> dict[str, str]:
    """Return the environment for a submission, which the job inherits.

    `options` are the long names of the sbatch options in the script.
    """
    kept = {n: os.environ[n] for o, n in DEFAULTS.items() if n in os.environ and o not in options}
    env = clean_environment(_site_variables() | kept | _login_host())
    return {name: value for name, value in env.items() if not _is_of_this_job(name, value)}


def for_step(*, allocation: bool = True) -> dict[str, str]:
    """Return the environment for agents in the enclosing allocation.

    srun gets the facts about the job from the controller. With `allocation=False` the environment
    names no job: for agents on this machine without an allocation.
    """
    known = {k: v for k, v in os.environ.items() if k.startswith(ALLOCATION)} if allocation else {}
    return clean_environment(_site_variables() | known | _login_host())


def with_job_id(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with the variables by which srun finds this job."""
    job = {n: os.environ[n] for n in ("SLURM_JOB_ID",) if n in os.environ}
    return dict(env) | _site_variables() | job


@contextmanager
def applied(env: Mapping[str, str]) -> Iterator[None]:
    """Make child processes inherit exactly `env`. submitit takes no environment as an argument.

    Mutates this process's environment: run nothing else in it meanwhile.
    """
    before = dict(os.environ)
    _replace(env)
    try:
        yield
    finally:
        _replace(before)


def _replace(env: Mapping[str, str]) -> None:
    for name in os.environ.keys() - env.keys():
        del os.environ[name]
    os.environ.update(env)


def _site_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in SITE if name in os.environ}


def _login_host() -> dict[str, str]:
    """Return the host that the user's first job was submitted from. For a job that is submitted
    from inside a job, Slurm would name a compute node."""
    login = os.environ.get(LOGIN_HOST) or os.environ.get("SLURM_SUBMIT_HOST", "")
    return {LOGIN_HOST: login} if login else {}


def _is_of_this_job(name: str, value: str) -> bool:
    """Return True if a variable belongs to the enclosing job: its GPUs, or its scratch folder,
    which sites name by the job's number and remove with it."""
    job = os.environ.get("SLURM_JOB_ID")
    if name in SCRATCH and job:
        return re.search(rf"(?<!\d){job}(?!\d)", value) is not None
    return name in GPUS
