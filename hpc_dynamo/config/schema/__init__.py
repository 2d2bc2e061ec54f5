"""Schema of the configuration: frozen dataclasses whose fields carry help, unit and bounds.

    config.py     the whole configuration, `model` and `models`
    workload.py   `batch`, `serve` and `route`
    topology.py   number and shape of the workers
    engine.py     the engine, its options and its container
    cluster.py    nodes, Slurm, bootstrap
    router.py     choice of a worker
    planner.py    role changes, scale-out, job handover
    simulate.py   `hpc-dynamo simulate`
    setting.py    metadata of a field
    describe.py   texts about a field

Defaults here hold if no file in `conf/` sets the field. `conf/config.yaml` selects the files of a
run, such as `topology=disaggregated`. `None` means that the value is derived.
"""

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
from hpc_dynamo.config.schema.describe import default_text, limits, type_name
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
from hpc_dynamo.config.schema.router import Policy, Router
from hpc_dynamo.config.schema.setting import FieldInfo, SchemaField, own_fields, schema_fields
from hpc_dynamo.config.schema.simulate import Simulate
from hpc_dynamo.config.schema.topology import ParallelSizes, Pool, Role, Topology, TopologyKind
from hpc_dynamo.config.schema.workload import Batch, Route, Serve, Task

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
    "FieldInfo",
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
    "SchemaField",
    "Serve",
    "ServedModel",
    "Simulate",
    "Slurm",
    "Task",
    "Topology",
    "TopologyKind",
    "default_text",
    "limits",
    "own_fields",
    "schema_fields",
    "type_name",
]
