"""The whole configuration of one run."""

import re
from dataclasses import dataclass, replace

from hpc_dynamo.config.schema.cluster import Cluster
from hpc_dynamo.config.schema.engine import Engine
from hpc_dynamo.config.schema.planner import Planner
from hpc_dynamo.config.schema.router import Router
from hpc_dynamo.config.schema.setting import section, setting
from hpc_dynamo.config.schema.simulate import Simulate
from hpc_dynamo.config.schema.topology import Topology
from hpc_dynamo.config.schema.workload import Batch, Route, Serve, Task

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Model:
    """Model to serve."""

    path: str = setting("", "Folder on a shared disk, or Hugging Face id.", path=True)
    name: str = setting("", "Name that clients use. Empty: the last part of the path.")
    lora: dict[str, str] = setting(
        {}, "Folders or hub ids of LoRA adapters, by the names that clients use.", path=True
    )

    @property
    def served_name(self) -> str:
        return self.name or self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def alias(self) -> str:
        """Return the full hub id, `org/name`, if it differs from the served name."""
        return self.path if HUB_ID.fullmatch(self.path) and self.path != self.served_name else ""


@dataclass(frozen=True)
class ServedModel:
    """One of several models of a job, with the settings of its own workers."""

    path: str = setting("", "Folder on a shared disk, or Hugging Face id.")
    engine: Engine = section(Engine())
    topology: Topology = section(Topology())
    router: Router = section(Router())
    lora: dict[str, str] = setting(
        {}, "Folders or hub ids of LoRA adapters, by the names that clients use."
    )


@dataclass(frozen=True)
class Config:
    """Configuration of one run.

    It is composed once on the login node and written to the run folder as JSON. Every process of
    the job reads that file.
    """

    task: Task = setting(Task.batch, "Purpose of the job. The command sets it.")
    name: str = setting("", "Name of the run. Empty: derived from the input file or the model.")
    runs_dir: str = setting(
        "runs", "Folder of all runs. Every node must see it.", path=True, was="runs"
    )
    input: str = setting("", "JSON Lines file of requests, for `batch`.", path=True)
    overwrite: bool = setting(
        False, "Start from the beginning. Earlier results are moved to NAME.old-1."
    )
    engine: Engine = section(Engine())
    model: Model = section(Model())
    models: dict[str, ServedModel] = setting(
        {}, "Several models to serve in one job, by name. Empty: only `model`."
    )
    topology: Topology = section(Topology())
    cluster: Cluster = section(Cluster())
    batch: Batch = section(Batch())
    router: Router = section(Router())
    serve: Serve = section(Serve())
    route: Route = section(Route())
    planner: Planner = section(Planner())
    simulate: Simulate = section(Simulate())

    def for_model(self, model: str) -> "Config":
        """Return the configuration of a run of only one of several models.

        A run of one model, whose name in plans and reports is empty, is returned unchanged.
        """
        if not self.models:
            return self
        own = self.models[model]
        return replace(
            self,
            model=Model(path=own.path, name=model, lora=own.lora),
            models={},
            engine=own.engine,
            topology=own.topology,
            router=own.router,
        )

    @property
    def by_model(self) -> dict[str, "Config"]:
        """`for_model` of every model, by name."""
        return {name: self.for_model(name) for name in self.models or ("",)}

    @property
    def hardware_in_use(self) -> tuple[str, ...]:
        """Entries of `cluster.hardware` that pools name, in the order of the pools."""
        pools = (pool for own in self.by_model.values() for _, pool in own.topology.pools)
        return tuple(dict.fromkeys(pool.hardware for pool in pools))

    @property
    def served_name(self) -> str:
        """Model name in requests. Empty if only the engines know it."""
        return self.model.name if self.route.engines else self.model.served_name
