"""One heterogeneous job: a component for each kind of nodes, all started together.

submitit does not support such jobs, and its tasks would look for their pickles under the ids of the
components. So its step starts the agents as in an enclosing allocation.
"""

import time

from hpc_dynamo.config import Config
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch.environment import for_submission
from hpc_dynamo.launch.refusal import submission_error
from hpc_dynamo.launch.resources import group_configs, sbatch_options
from hpc_dynamo.launch.script import hetjob_script
from hpc_dynamo.launch.slurm import agent_mpi, run_command
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan


def submit(attempt: Attempt, config: Config, plan: Plan, entry: str) -> JobRecord:
    """`entry` is a module that takes the attempt's path. Raises LaunchError."""
    file = attempt.submitit / "hetjob.sbatch"
    file.write_text(hetjob_script(attempt, config, plan, entry, agent_mpi(config)))
    env = for_submission(sbatch_options(*group_configs(config, plan)[0]))
    try:
        said = run_command(("sbatch", "--parsable", str(file)), env)
    except LaunchError as e:
        said = e.message.partition(f"{file}: ")[2]
        if not said:
            raise
        raise submission_error(said) from e
    job_id = said.strip().partition(";")[0]  # a name of the cluster may follow
    return JobRecord(launcher="slurm", job_id=job_id, submitted_at=time.time())
