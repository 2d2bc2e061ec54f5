"""Configuration of a run: schema, validation and transformations.

- `schema/`: Fields with help, unit and bounds.
- `validation/`: Checks before a run starts.
- `resolve.py`: Transformations of the configuration, in the order of a run.
- `merge.py`: Merge of engine options.
- `paths.py`: Expansion of `~` in fields that hold paths.
- `sbatch_options.py`: Names of sbatch options.
"""

from hpc_dynamo.config.resolve import (
    resolve_route,
    with_extra_job,
    with_hardware,
    with_role_options,
    with_throughput_routing,
    with_worker_options,
)
from hpc_dynamo.config.schema.cluster import (
    Bootstrap,
    BootstrapMethod,
    Cluster,
    Hardware,
    Heterogeneous,
    Launcher,
    Slurm,
)
from hpc_dynamo.config.schema.config import Config, Model, ServedModel
from hpc_dynamo.config.schema.engine import (
    Container,
    ContainerKind,
    Device,
    Engine,
    KvLoadFailurePolicy,
    RoleOptions,
)
from hpc_dynamo.config.schema.planner import (
    REMOVED_FORECASTS,
    Forecast,
    Planner,
    PlannerMode,
    PriorityTarget,
    ScaleOut,
)
from hpc_dynamo.config.schema.router import Policy, Router, TierCost
from hpc_dynamo.config.schema.setting import schema_fields
from hpc_dynamo.config.schema.simulate import Simulate
from hpc_dynamo.config.schema.topology import ParallelSizes, Pool, Role, Topology, TopologyKind
from hpc_dynamo.config.schema.workload import Batch, Route, Serve, Task
from hpc_dynamo.config.validation import (
    check_folder,
    errors_of_model,
    require_single_model,
    validate,
    walltime_minutes,
)

__all__ = [
    "REMOVED_FORECASTS",
    "Batch",
    "Bootstrap",
    "BootstrapMethod",
    "Cluster",
    "Config",
    "Container",
    "ContainerKind",
    "Device",
    "Engine",
    "Forecast",
    "Hardware",
    "Heterogeneous",
    "KvLoadFailurePolicy",
    "Launcher",
    "Model",
    "ParallelSizes",
    "Planner",
    "PlannerMode",
    "Policy",
    "Pool",
    "PriorityTarget",
    "Role",
    "RoleOptions",
    "Route",
    "Router",
    "ScaleOut",
    "Serve",
    "ServedModel",
    "Simulate",
    "Slurm",
    "Task",
    "TierCost",
    "Topology",
    "TopologyKind",
    "check_folder",
    "errors_of_model",
    "require_single_model",
    "resolve_route",
    "schema_fields",
    "validate",
    "walltime_minutes",
    "with_extra_job",
    "with_hardware",
    "with_role_options",
    "with_throughput_routing",
    "with_worker_options",
]
