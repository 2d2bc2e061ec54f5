"""A job goes on after its walltime: requeued, or as a further job of the same run.

`python -m hpc_dynamo.launch.detached_submit ATTEMPT` submits the next attempt, in a process without
our job's environment, which would tell the new job that it is the old one.
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
from hpc_dynamo.run import Attempt

ENTRY = "hpc_dynamo.tasks.node"  # by name: it is of a higher layer
SUBMIT_S = 120.0

log = logging.getLogger(__name__)


def submit_next_attempt(attempt: Attempt) -> Attempt:
    """A further job with the same configuration, the run's next attempt. Raises LaunchError."""
    argv = (sys.executable, "-m", __name__, str(attempt.path))
    env = for_submission(())
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=SUBMIT_S)
    except subprocess.TimeoutExpired as e:
        raise LaunchError(f"no successor was submitted within {SUBMIT_S:.0f} s") from e
    if done.returncode:
        lines = reversed(done.stderr.splitlines())
        said = next((line for line in lines if "Error" in line), "it does not say why")
        hint = "whether nodes may submit jobs here; the same command goes on by hand"
        raise LaunchError(f"no successor could be submitted: {said}", hint=hint)
    return Attempt(Path(done.stdout.strip().splitlines()[-1]))


def requeue() -> bool:
    """Whether Slurm starts this job again in its place. It ends us at once if so."""
    try:
        slurm.slurm_command("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    except (LaunchError, MissingDependency) as e:
        log.warning("this job cannot be requeued: %s", e)
        return False
    return True


def main(path: str) -> None:
    former = Attempt(Path(path))
    config, plan = former.config(), former.plan()
    attempt = former.run.new_attempt(config, plan)
    job = former.job()
    launcher = Launcher.local if job and job.launcher == "local" else Launcher.slurm
    launch.start_attempt(launcher, attempt, config, plan, importlib.import_module(ENTRY).main)
    print(attempt.path)


if __name__ == "__main__":
    main(sys.argv[1])
