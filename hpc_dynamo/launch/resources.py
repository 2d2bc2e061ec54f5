"""What a plan asks of Slurm: pure, shared by submission and by the rendered scripts."""

from dataclasses import dataclass

from hpc_dynamo.config import Config, Engine, minutes, on
from hpc_dynamo.topology import Plan

AGENT_CPUS, AGENT_MEMORY_GB = 1, 1.0  # each node's agent
# On top, on the head node: counted on all that are like it. Memory for each model: what its router
# knows of caches, and its tokenizer in each frontend.
HEAD_CPUS, HEAD_MEMORY_GB = 1, 3.0


@dataclass(frozen=True)
class Resources:
    """Of one node, times `nodes`. `memory_gb` is host memory in GiB."""

    nodes: int
    cpus: int
    memory_gb: int
    gpus: int
    time_min: int


def components(config: Config, plan: Plan) -> tuple[tuple[Config, Plan], ...]:
    """Each kind of nodes of a job: the configuration as it is there, and what is laid out there."""
    return tuple((on(config, part.kind), part) for part in plan.parts)


def resources(config: Config, plan: Plan) -> Resources:
    """Of nodes that are all alike: enough for the fullest, unless `cluster` says how much a node
    gives."""
    first, cluster = plan.first_node, config.cluster
    parts = [_engines(config, plan, node) for node in range(first, first + plan.nodes)]
    heads = len(config.each) if first == 0 else 0
    cpus = max(sum(engine.cpus for engine in part) for part in parts)
    memory = max(sum(engine.memory_gb for engine in part) for part in parts)
    memory += AGENT_MEMORY_GB + HEAD_MEMORY_GB * heads
    return Resources(
        nodes=plan.nodes,
        cpus=cluster.cpus_per_node or cpus + AGENT_CPUS + HEAD_CPUS * (first == 0),
        memory_gb=-int(-(cluster.memory_gb_per_node or memory) // 1),
        gpus=plan.gpus_per_node,
        time_min=minutes(cluster.slurm.time),
    )


def _engines(config: Config, plan: Plan, node: int) -> list[Engine]:
    """For each GPU in use on a node its worker's engine; once a worker where they use none."""
    of = {model: own.engine for model, own in config.each.items()}
    shards = [(of[w.model], s) for w in plan.workers for s in w.shards if s.node == node]
    return [engine for engine, shard in shards for _ in shard.gpus or (None,)]


def sbatch_options(config: Config, plan: Plan) -> dict[str, str | int | bool]:
    """sbatch's long options for nodes that are all alike, without dashes. True is a bare flag."""
    slurm, need = config.cluster.slurm, resources(config, plan)
    options: dict[str, str | int | bool | None] = {
        "job-name": f"hpc-dynamo-{config.name}" if config.name else "hpc-dynamo",
        "nodes": need.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": None if slurm.exclusive else need.cpus,
        "mem": "0" if slurm.exclusive else f"{need.memory_gb}GB",
        "time": need.time_min,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "exclusive": slurm.exclusive or None,
    }
    if need.gpus:
        kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
        prefix = "gpu:" if slurm.gpu_option == "gres" else ""
        options[slurm.gpu_option] = f"{prefix}{kind}{need.gpus}"
    options |= slurm.extra
    return {name: value for name, value in options.items() if value is not None}


def srun_options(config: Config, plan: Plan, mpi: str) -> list[str]:
    """For the step of the agents on nodes that are all alike.

    cpus-per-task is repeated since srun stopped taking it from the job in Slurm 22.05; a lost
    agent must end neither the step nor the other agents.
    """
    cpus = [] if config.cluster.slurm.exclusive else [resources(config, plan).cpus]
    return [
        f"--mpi={mpi}",
        "--kill-on-bad-exit=0",
        "--no-kill",
        *(f"--cpus-per-task={n}" for n in cpus),
        *config.cluster.slurm.srun_args,
    ]
