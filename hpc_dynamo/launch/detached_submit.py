"""Continuation of a run after the walltime: requeue of its job, or submission of the next attempt.

`python -m hpc_dynamo.launch.detached_submit ATTEMPT [NODES]` submits the next attempt. It runs in a
process without the environment of the current job, which the new job would otherwise inherit.
"""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

from hpc_dynamo import launch
from hpc_dynamo.config import Launcher
from hpc_dynamo.errors import LaunchError, MissingDependency
from hpc_dynamo.launch import slurm
from hpc_dynamo.launch.environment import for_submission
from hpc_dynamo.launch.excluded_nodes import without_nodes
from hpc_dynamo.run import Attempt

ENTRY = "hpc_dynamo.tasks.node"  # by name, since it is in a higher layer
SUBMIT_S = 120.0

log = logging.getLogger(__name__)


def submit_next_attempt(attempt: Attempt, exclude: str = "") -> Attempt:
    """Submit a job with the same configuration as the run's next attempt. Raises LaunchError.

    `exclude` are nodes not to use, separated by commas.
    """
    argv = (sys.executable, "-m", __name__, str(attempt.path), exclude)
    env = for_submission(())
    try:
        # In a session of its own: a job on this machine continues if this process is killed.
        done = subprocess.run(
            argv,
            env=env,
            capture_output=True,
            text=True,
            timeout=SUBMIT_S,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as e:
        what = f"the next job was not submitted within {SUBMIT_S:.0f} s"
        raise LaunchError(what, hint="`scontrol ping` shows if the controller responds") from e
    if done.returncode:
        lines = reversed(done.stderr.splitlines())
        reason = next((line for line in lines if "Error" in line), "no reason was reported")
        hint = "check that compute nodes may submit jobs; the same command resumes the run by hand"
        raise LaunchError(f"the next job could not be submitted: {reason}", hint=hint)
    return Attempt(Path(done.stdout.strip().splitlines()[-1]))


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


def main(path: str, exclude: str = "") -> None:
    """Submit the attempt after the one in the folder `path`; print the new folder."""
    former = Attempt(Path(path))
    config, plan = former.config(), former.plan()
    if exclude:
        config = without_nodes(config, exclude)
    attempt = former.run.new_attempt(config, plan)
    job = former.job()
    launcher = Launcher.local if job and job.launcher == "local" else Launcher.slurm
    launch.start_attempt(launcher, attempt, config, plan, importlib.import_module(ENTRY).main)
    print(attempt.path)


if __name__ == "__main__":
    main(*sys.argv[1:])
