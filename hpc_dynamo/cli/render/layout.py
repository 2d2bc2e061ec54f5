"""Table of a layout: the workers on each node, and the resources of the nodes."""

import itertools

from rich.console import Group, RenderableType
from rich.markup import escape

from hpc_dynamo.cli.render.table import ResponsiveTable
from hpc_dynamo.config import Config
from hpc_dynamo.launch.resources import group_configs, required_resources
from hpc_dynamo.topology import Plan


def layout_table(config: Config, plan: Plan) -> RenderableType:
    """Return the workers of every node, and the resources requested for each kind of node."""
    if config.route.engines:
        return _external_engines(config)
    engines = dict.fromkeys(f"{o.engine.name}, {o.topology.kind}" for o in config.by_model.values())
    models = ["model"] if config.models else []
    title = f"{'; '.join(engines)}: {plan.nodes} node(s)"
    table = ResponsiveTable("node", "rank", *models, "role", "GPUs", title=title)
    groups = group_configs(config, plan)
    for _, group in groups:
        for node in range(group.first_node, group.first_node + group.nodes):
            rows = _workers_on(group, node, with_model=bool(models))
            idle = "spare" if node >= plan.nodes - plan.spare_nodes else "idle"
            for row in rows or [("-", *("-" for _ in models), idle, "-")]:
                name = " ".join(filter(None, (str(node), group.hardware)))
                table.add_row(*map(escape, (name, *row)))
    return Group(table, *itertools.starmap(_resources_line, groups))


def _workers_on(plan: Plan, node: int, *, with_model: bool) -> list[tuple[str, ...]]:
    """Return rank, model (if `with_model`), role and GPUs of every worker on a node."""
    rows = list[tuple[str, ...]]()
    for worker, shard in [(w, s) for w in plan.workers for s in w.shards if s.node == node]:
        number = worker.shards.index(shard) + 1
        split = f" (shard {number} of {len(worker.shards)})" if len(worker.shards) > 1 else ""
        gpus = ",".join(map(str, shard.gpus)) or "-"
        model = (worker.model,) if with_model else ()
        rows.append((f"{worker.rank}{split}", *model, str(worker.role), gpus))
    return rows


def _resources_line(config: Config, plan: Plan) -> str:
    need = required_resources(config, plan)
    gpus = f", {need.gpus} GPUs" if need.gpus else ""
    kind = f" of {plan.hardware}" if plan.hardware else ""
    memory = f"{need.memory_gb} GB" if need.memory_gb else "all memory"
    return f"each node{kind}: {need.cpus} CPUs, {memory}{gpus}; time {need.time_min} min"


def _external_engines(config: Config) -> ResponsiveTable:
    title = f"{config.topology.kind}, existing engines"
    table = ResponsiveTable("rank", "role", "URL", title=title)
    for rank, (role, url) in enumerate(config.route.engines):
        table.add_row(*map(escape, (str(rank), str(role), url)))
    return table
