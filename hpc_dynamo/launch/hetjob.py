"""One heterogeneous job: a component for each kind of nodes, all started together.

submitit has no words for one, and its tasks would look for their pickles under the ids of their
components. So the script is ours, and its step starts the agents as in somebody's allocation.
"""

import shlex
import sys
import time

from hpc_dynamo.config import Config
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch import step
from hpc_dynamo.launch.resources import components
from hpc_dynamo.launch.script import directives
from hpc_dynamo.launch.slurm import HINT, ask, mpi_type
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan


def submit(attempt: Attempt, config: Config, plan: Plan, entry: str) -> JobRecord:
    """`entry` is a module that takes the attempt's path. Raises LaunchError."""
    file = attempt.submitit / "hetjob.sbatch"
    file.write_text(script(attempt, config, plan, entry, mpi_type(config)))
    try:
        said = ask("sbatch", "--parsable", str(file))
    except LaunchError as e:
        last = e.message.strip().splitlines()[-1]
        raise LaunchError(f"sbatch refused the job: {last}", hint=HINT) from e
    job_id = said.strip().partition(";")[0]  # a name of the cluster may follow
    return JobRecord(launcher="slurm", job_id=job_id, submitted_at=time.time())


def script(attempt: Attempt, config: Config, plan: Plan, entry: str, mpi: str) -> str:
    """The text of the batch script."""
    signal = {"signal": f"USR2@{config.cluster.slurm.signal_before_end_s}"}  # to all tasks
    logs = {"output": f"{attempt.submitit}/%j.log", "open-mode": "append"}
    lines = ["#!/bin/bash", *directives(config, plan, logs | signal, signal)]
    words = (sys.executable, "-u", "-m", entry, str(attempt.path))
    srun = step.command(components(config, plan), words, mpi)
    return "\n".join([*lines, "", *config.cluster.slurm.setup, shlex.join(srun), ""])
