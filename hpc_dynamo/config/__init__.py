"""The configuration of one run: its schema, and the checks of its values."""

from hpc_dynamo.config.checks import MIN_SILENCE_S, check, minutes
from hpc_dynamo.config.cluster import Bootstrap, BootstrapMethod, Cluster, Launcher, Mixed, Slurm
from hpc_dynamo.config.container import Container, ContainerKind
from hpc_dynamo.config.hardware import Hardware
from hpc_dynamo.config.kinds import on
from hpc_dynamo.config.lines import check_folder
from hpc_dynamo.config.planner import (
    REMOVED_FORECASTS,
    Forecast,
    Grow,
    Planner,
    PlannerKind,
    Protect,
)
from hpc_dynamo.config.route import before
from hpc_dynamo.config.router import Policy, Router
from hpc_dynamo.config.schema import (
    Batch,
    Config,
    Device,
    Engine,
    Kind,
    LoadFailure,
    Model,
    Pool,
    Role,
    RoleOptions,
    Route,
    Serve,
    Served,
    Task,
    Topology,
)
from hpc_dynamo.config.several import about, refuse_several
from hpc_dynamo.config.simulate import Simulate

__all__ = [
    "MIN_SILENCE_S",
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
    "Grow",
    "Hardware",
    "Kind",
    "Launcher",
    "LoadFailure",
    "Mixed",
    "Model",
    "Planner",
    "PlannerKind",
    "Policy",
    "Pool",
    "Protect",
    "Role",
    "RoleOptions",
    "Route",
    "Router",
    "Serve",
    "Served",
    "Simulate",
    "Slurm",
    "Task",
    "Topology",
    "about",
    "before",
    "check",
    "check_folder",
    "minutes",
    "on",
    "refuse_several",
]
