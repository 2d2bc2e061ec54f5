"""Continuation of a run after the walltime: requeue of its job, or submission of the next attempt.

    python -m hpc_dynamo.launch.next_attempt ATTEMPT [NODES]

submits the attempt after ATTEMPT, without NODES.
"""

import importlib
import logging
import os
from pathlib import Path

from hpc_dynamo import launch
from hpc_dynamo.config import Launcher
from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch import slurm
from hpc_dynamo.launch.detached_submit import run_submission, submit_detached
from hpc_dynamo.launch.excluded_nodes import without_nodes
from hpc_dynamo.run import Attempt

PROGRAM = "hpc_dynamo.launch.next_attempt"
ENTRY = "hpc_dynamo.tasks.node"  # by name, since it is in a higher layer

log = logging.getLogger(__name__)


async def submit_next_attempt(attempt: Attempt, exclude: str = "") -> Attempt:
    """Submit a job with the same configuration as the run's next attempt. Raises LaunchError.

    `exclude` are nodes not to use, separated by commas.
    """
    hint = "check that compute nodes may submit jobs; the same command resumes the run by hand"
    args = (str(attempt.path), exclude)
    return Attempt(Path(await submit_detached("the next job", PROGRAM, *args, hint=hint)))


def requeue() -> bool:
    """Requeue this job; Slurm ends this process then. Returns False if Slurm refuses.

    It refuses if the job was submitted with --no-requeue.
    """
    job_id = os.environ["SLURM_JOB_ID"]
    try:
        slurm.slurm_command("scontrol", "requeue", job_id)
    except (LaunchError, MissingDependency) as e:
        log.warning("this job cannot be requeued: %s", e)
        return False
    return True


def main(path: str, exclude: str = "") -> str:
    """Submit the attempt after the one in the folder `path`; return the new folder."""
    former = Attempt(Path(path))
    config, plan = former.config(), former.plan()
    if exclude:
        config = without_nodes(config, exclude)
    attempt = former.run.new_attempt(config, plan)
    job = former.job()
    launcher = Launcher.local if job and job.launcher == "local" else Launcher.slurm
    launch.start_attempt(launcher, attempt, config, plan, importlib.import_module(ENTRY).main)
    return str(attempt.path)


if __name__ == "__main__":
    run_submission(main)
