"""Heterogeneous job: one component for each node group, all started together.

submitit does not support such jobs: its tasks would look for their pickles under the components'
job ids. The agents are started by a step, as in an existing allocation.
"""

import time

from hpc_dynamo.config import Config
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch.environment import for_submission
from hpc_dynamo.launch.refusal import submission_error
from hpc_dynamo.launch.resources import group_configs, sbatch_options
from hpc_dynamo.launch.sbatch_script import hetjob_script
from hpc_dynamo.launch.slurm import run_command
from hpc_dynamo.messages import JobRecord
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan


def submit(attempt: Attempt, config: Config, plan: Plan, entry: str) -> JobRecord:
    """Submit one job for all node groups. Raises LaunchError.

    `entry` is a module that takes the path of the attempt.
    """
    file = attempt.submitit / "hetjob.sbatch"
    file.write_text(hetjob_script(attempt, config, plan, entry))
    env = for_submission(sbatch_options(*group_configs(config, plan)[0]))
    try:
        output = run_command(("sbatch", "--parsable", str(file)), env)
    except LaunchError as e:
        errors = e.message.partition(f"{file}: ")[2]
        if not errors:
            raise
        raise submission_error(errors) from e
    job_id = output.strip().partition(";")[0]  # the name of the cluster may follow
    return JobRecord(launcher="slurm", job_id=job_id, submitted_at=time.time())
