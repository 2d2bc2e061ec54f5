"""Layout of a job: which worker runs on which nodes and GPUs. Pure, without Slurm.

`plan(config)` returns the `Plan` of a job, `plan_extra_job` that of an extra job (scale-out).

    records.py   Plan, Worker, Shard, NodeGroup
    layout.py    from the configuration to a Plan, one group of identical nodes after another
    packing.py   workers on identical nodes: first fit, largest first
    spares.py    workers of failed nodes on spare nodes
"""

from hpc_dynamo.topology.layout import plan, plan_extra_job
from hpc_dynamo.topology.records import NodeGroup, Plan, Shard, Worker
from hpc_dynamo.topology.spares import Replacements, replace_failed, with_replacements

__all__ = [
    "NodeGroup",
    "Plan",
    "Replacements",
    "Shard",
    "Worker",
    "plan",
    "plan_extra_job",
    "replace_failed",
    "with_replacements",
]
