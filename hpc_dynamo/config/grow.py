"""Values of `planner.scale_out` that cannot work."""

from hpc_dynamo.config.planner import PlannerMode
from hpc_dynamo.config.schema import Config, Task
from hpc_dynamo.errors import ConfigError


def check_grow(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    grow = config.planner.scale_out
    if not grow.max_nodes:
        return
    if grow.max_nodes < 0 or not 1 <= grow.nodes_per_job <= grow.max_nodes:
        what = f"planner.scale_out.nodes_per_job={grow.nodes_per_job} of "
        what += f"planner.scale_out.max_nodes={grow.max_nodes}"
        raise ConfigError(
            what, hint="from 1 to planner.scale_out.max_nodes; planner.scale_out.max_nodes=0: none"
        )
    if grow.scale_in_delay_s < 0 or (grow.max_node_hours is not None and grow.max_node_hours <= 0):
        what = f"planner.scale_out.scale_in_delay_s={grow.scale_in_delay_s}, "
        what += f"planner.scale_out.max_node_hours={grow.max_node_hours}"
        hint = "no time is negative; planner.scale_out.max_node_hours=null sets no limit"
        raise ConfigError(what, hint=hint)
    if config.planner.mode is PlannerMode.off:
        what = "planner.scale_out.max_nodes is set, but nothing decides when to grow"
        raise ConfigError(what, hint="planner=load, or planner=sla planner.profile=FILE")
    if config.task is not Task.serve:
        what = "planner.scale_out adds workers to an endpoint"
        raise ConfigError(what, hint="hpc-dynamo serve …, or planner.scale_out.max_nodes=0")
