"""The configuration of one run: its schema, and the checks of its values."""

from hpc_dynamo.config.checks import MIN_HEARTBEAT_TIMEOUT_S, validate, walltime_minutes
from hpc_dynamo.config.cluster import (
    Bootstrap,
    BootstrapMethod,
    Cluster,
    Heterogeneous,
    Launcher,
    Slurm,
)
from hpc_dynamo.config.container import Container, ContainerKind
from hpc_dynamo.config.hardware import Hardware
from hpc_dynamo.config.kinds import with_hardware
from hpc_dynamo.config.lines import check_folder
from hpc_dynamo.config.planner import (
    REMOVED_FORECASTS,
    Forecast,
    Planner,
    PlannerMode,
    PriorityTarget,
    ScaleOut,
)
from hpc_dynamo.config.route import with_route_topology
from hpc_dynamo.config.router import Policy, Router
from hpc_dynamo.config.schema import (
    Batch,
    Config,
    Device,
    Engine,
    KvLoadFailurePolicy,
    Model,
    Pool,
    Role,
    RoleOptions,
    Route,
    Serve,
    ServedModel,
    Task,
    Topology,
    TopologyKind,
)
from hpc_dynamo.config.several import errors_of_model, require_single_model
from hpc_dynamo.config.simulate import Simulate

__all__ = [
    "MIN_HEARTBEAT_TIMEOUT_S",
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
    "Topology",
    "TopologyKind",
    "check_folder",
    "errors_of_model",
    "require_single_model",
    "validate",
    "walltime_minutes",
    "with_hardware",
    "with_route_topology",
]
