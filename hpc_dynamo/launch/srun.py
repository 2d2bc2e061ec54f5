"""srun's command for the step that runs a job's agents, on identical nodes or several node
groups."""

from collections.abc import Sequence

from hpc_dynamo.config import Config
from hpc_dynamo.launch.resources import srun_options
from hpc_dynamo.topology import Plan

# Configuration and plan of each node group, see resources.group_configs.
GroupPlans = Sequence[tuple[Config, Plan]]


def srun_command(groups: GroupPlans, task: Sequence[str], *extra: str) -> list[str]:
    """Return srun's command that runs `task` once on every node; `extra` are more options.

    Several groups are components of a heterogeneous job. A job submitted with --export=NONE would
    give its steps no environment, hence --export=ALL.
    """
    argv = ["srun"]
    for index, (config, plan) in enumerate(groups):
        argv += [":"] if index else []
        argv += [f"--het-group={index}"] if len(groups) > 1 else []
        argv += [f"--nodes={plan.nodes}", f"--ntasks={plan.nodes}", "--ntasks-per-node=1"]
        argv += ["--export=ALL", *extra, *srun_options(config, plan), *task]
    return argv
