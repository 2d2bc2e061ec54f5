"""Values of `planner.grow` that cannot work."""

from hpc_dynamo.config.planner import PlannerKind
from hpc_dynamo.config.schema import Config, Task
from hpc_dynamo.errors import ConfigError


def check_grow(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    grow = config.planner.grow
    if not grow.nodes:
        return
    if grow.nodes < 0 or not 1 <= grow.nodes_each <= grow.nodes:
        what = f"planner.grow.nodes_each={grow.nodes_each} of planner.grow.nodes={grow.nodes}"
        raise ConfigError(what, hint="from 1 to planner.grow.nodes; planner.grow.nodes=0: none")
    if grow.idle_s < 0 or (grow.node_hours is not None and grow.node_hours <= 0):
        what = f"planner.grow.idle_s={grow.idle_s}, planner.grow.node_hours={grow.node_hours}"
        hint = "no time is negative; planner.grow.node_hours=null sets no limit"
        raise ConfigError(what, hint=hint)
    if config.planner.by is PlannerKind.off:
        what = "planner.grow.nodes is set, but nothing decides when to grow"
        raise ConfigError(what, hint="planner=load, or planner=sla planner.profile=FILE")
    if config.task is not Task.serve:
        what = "planner.grow adds workers to an endpoint"
        raise ConfigError(what, hint="hpc-dynamo serve …, or planner.grow.nodes=0")
