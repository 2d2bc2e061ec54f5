"""srun's command for the step that runs a job's agents, on identical nodes or several node
groups."""

from collections.abc import Sequence

from hpc_dynamo.config import Config
from hpc_dynamo.launch.resources import srun_options
from hpc_dynamo.topology import Plan

# Configuration and plan of each node group, see resources.group_configs.
GroupPlans = Sequence[tuple[Config, Plan]]

# Slurm may signal the end of the walltime a minute early, or a preemption, while Python still
# imports. By default the signal then ends the task.
IGNORE_SIGNAL = "trap '' USR2"
SIGNAL_SAFE = ("/bin/sh", "-c", f'{IGNORE_SIGNAL}; exec "$@"', "sh")


def srun_command(groups: GroupPlans, task: Sequence[str], *extra: str) -> list[str]:
    """Return srun's command that runs `task` once on every node; `extra` are more options.

    The task ignores Slurm's signal before the end of the job until it handles the signal.

    Several groups are components of a heterogeneous job. A job submitted with --export=NONE would
    give its steps no environment, hence --export=ALL.
    """
    argv = ["srun"]
    for index, (config, plan) in enumerate(groups):
        argv += [":"] if index else []
        argv += [f"--het-group={index}"] if len(groups) > 1 else []
        argv += [f"--nodes={plan.nodes}", f"--ntasks={plan.nodes}", "--ntasks-per-node=1"]
        argv += ["--export=ALL", *extra, *srun_options(config, plan)]
        argv += [*SIGNAL_SAFE, *task]
    return argv
