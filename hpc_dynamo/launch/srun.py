"""The step of a job that runs its agents, over nodes that are alike or of several kinds."""

from collections.abc import Sequence

from hpc_dynamo.config import Config
from hpc_dynamo.launch.resources import srun_options
from hpc_dynamo.topology import Plan


def srun_command(
    groups: Sequence[tuple[Config, Plan]], task: Sequence[str], mpi: str, *extra: str
) -> list[str]:
    """Return srun's arguments for `words` on every node, one task each; `extra` are more options.

    --export=ALL: in a job submitted with --export=NONE, steps would get no environment.

    Several kinds of nodes (see resources.components) are components of a heterogeneous job.
    """
    argv = ["srun"]
    for index, (its, part) in enumerate(groups):
        argv += [":"] if index else []
        argv += [f"--het-group={index}"] if len(groups) > 1 else []
        argv += [f"--nodes={part.nodes}", f"--ntasks={part.nodes}", "--ntasks-per-node=1"]
        argv += ["--export=ALL", *extra, *srun_options(its, part, mpi), *task]
    return argv
