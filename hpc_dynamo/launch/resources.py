"""Resources that a plan requests from Slurm. Pure; used for submission and for rendered scripts."""

import math
from dataclasses import dataclass

from hpc_dynamo.config import Config, Engine, Slurm, Task, walltime_minutes, with_hardware
from hpc_dynamo.config.sbatch_options import Options, asks_for_gpus, asks_for_memory, extra_options
from hpc_dynamo.launch.gpu_requests import check_gpu_requests
from hpc_dynamo.topology import Plan

AGENT_CPUS, AGENT_MEMORY_GB = 1, 1.0  # each node's agent
# Added for the head, on all nodes of its group. The memory is for each model: the index of its
# router, and its tokenizer in each frontend.
HEAD_CPUS, HEAD_MEMORY_GB = 1, 3.0


@dataclass(frozen=True)
class NodeResources:
    """Resources of each of `nodes` nodes. `memory_gb` is in GiB; 0 requests all memory of a
    node."""

    nodes: int
    cpus: int
    memory_gb: int
    gpus: int
    time_min: int


def group_configs(config: Config, plan: Plan) -> tuple[tuple[Config, Plan], ...]:
    """Return the configuration and the plan of each node group of a job."""
    return tuple((with_hardware(config, group.hardware), group) for group in plan.group_plans)


def required_resources(config: Config, plan: Plan) -> NodeResources:
    """Return the resources of identical nodes: enough for the fullest one, unless `cluster` sets
    them."""
    nodes = range(plan.first_node, plan.first_node + plan.nodes)
    loads, cluster = [_engines(config, plan, node) for node in nodes], config.cluster
    set_memory = cluster.memory_gb_per_node
    cpus = max(sum(engine.cpus for engine in load) for load in loads) + AGENT_CPUS
    memory = max(sum(map(_host_memory_gb, load)) for load in loads) + AGENT_MEMORY_GB
    if plan.first_node == 0:
        cpus += HEAD_CPUS
        memory += HEAD_MEMORY_GB * len(config.by_model)
    return NodeResources(
        nodes=plan.nodes,
        cpus=cluster.cpus_per_node or cpus,
        memory_gb=math.ceil(memory if set_memory is None else set_memory),
        gpus=plan.gpus_per_node,
        time_min=walltime_minutes(cluster.slurm.time),
    )


def _host_memory_gb(engine: Engine) -> float:
    return engine.memory_gb + engine.kv_host_cache_gb


def _engines(config: Config, plan: Plan, node: int) -> list[Engine]:
    """Return the engine of each used GPU of a node; of each worker if workers use no GPUs."""
    of = {model: own.engine for model, own in config.by_model.items()}
    shards = [(of[w.model], s) for w in plan.workers for s in w.shards if s.node == node]
    return [engine for engine, shard in shards for _ in shard.gpus or (None,)]


def sbatch_options(config: Config, plan: Plan) -> Options:
    """Return sbatch's long options for identical nodes, without dashes. True is a flag.

    An option of `cluster.slurm.extra` replaces the generated one.
    """
    slurm, need = config.cluster.slurm, required_resources(config, plan)
    check_gpu_requests(slurm, plan)
    gpus, extra = _gpus(slurm, need), extra_options(slurm)
    if not asks_for_gpus(extra) and "gres" in gpus and "gres" in extra:
        extra["gres"] = f"{gpus['gres']},{extra['gres']}"  # one line has GPUs and other resources
    options: dict[str, str | int | bool | None] = {
        "job-name": f"hpc-dynamo-{config.name}" if config.name else "hpc-dynamo",
        "nodes": need.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": None if slurm.exclusive else need.cpus,
        **({} if asks_for_memory(extra) else _memory(slurm, need)),
        "time": need.time_min,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "reservation": slurm.reservation,
        "exclusive": slurm.exclusive or None,
        # With spare nodes the job continues after the loss of a node.
        "no-kill": bool(plan.spare_nodes),
        **({} if {"requeue", "no-requeue"} & extra.keys() else _requeue(config)),
        **({} if asks_for_gpus(extra) else gpus),
    }
    options |= extra
    return {n: value for n, value in options.items() if value is not None and value is not False}


def _requeue(config: Config) -> dict[str, bool]:
    """Return the flag that lets Slurm restart the job after the loss of a node, or forbids it.

    A batch resumes and an endpoint publishes its new address, unless the user wants no requeue.
    """
    wanted = config.task is Task.serve or (config.task is Task.batch and config.batch.requeue)
    return {"requeue" if wanted else "no-requeue": True}


def _memory(slurm: Slurm, need: NodeResources) -> dict[str, str]:
    """Return the line for host memory. Whole nodes, and all memory of a node, are 0 for Slurm."""
    if slurm.memory_option == "none":
        return {}
    if slurm.exclusive or not need.memory_gb:
        return {"mem": "0"} if slurm.memory_option == "mem" else {}
    if slurm.memory_option == "mem":
        return {"mem": f"{need.memory_gb}GB"}
    return {"mem-per-cpu": f"{math.ceil(need.memory_gb * 1024 / need.cpus)}MB"}


def _gpus(slurm: Slurm, need: NodeResources) -> dict[str, str]:
    """Return the line for GPUs: of a node, of its one task, or of the whole job."""
    option = slurm.gpu_option
    if option == "none" or not need.gpus:
        return {}
    kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
    prefix = "gpu:" if option == "gres" else ""
    count = need.gpus * need.nodes if option == "gpus" else need.gpus
    return {option: f"{prefix}{kind}{count}"}


def srun_options(config: Config, plan: Plan) -> list[str]:
    """Return srun's options for the agents on identical nodes.

    srun does not take cpus-per-task from the job since Slurm 22.05. A lost agent must end neither
    the step nor the other agents. Agents are no MPI ranks: a crash of one would end the step.
    """
    cpus = [] if config.cluster.slurm.exclusive else [required_resources(config, plan).cpus]
    return [
        "--mpi=none",
        "--kill-on-bad-exit=0",
        "--no-kill",
        *(f"--cpus-per-task={n}" for n in cpus),
        *config.cluster.slurm.srun_args,
    ]
