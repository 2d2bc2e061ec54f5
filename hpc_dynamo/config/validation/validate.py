"""Check of a whole configuration before anything starts."""

import re
from pathlib import Path

from hpc_dynamo.config.schema.config import Config
from hpc_dynamo.config.schema.planner import PlannerMode
from hpc_dynamo.config.schema.topology import Role, Topology, TopologyKind
from hpc_dynamo.config.schema.workload import Serve
from hpc_dynamo.config.validation.bounds import check_bounds
from hpc_dynamo.config.validation.container import check_container
from hpc_dynamo.config.validation.hardware import check_hardware
from hpc_dynamo.config.validation.media import check_allowed_media
from hpc_dynamo.config.validation.models import (
    check_adapter_names,
    check_adapters,
    check_models,
    errors_of_model,
)
from hpc_dynamo.config.validation.planner import check_planner, check_scale_out
from hpc_dynamo.config.validation.slurm import check_slurm, walltime_minutes
from hpc_dynamo.config.validation.text import check_folder, check_single_lines
from hpc_dynamo.errors import ConfigError

# Form that browsers send: lower case, no path. Browser extensions have their own schemes.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")


def validate(config: Config) -> None:
    """Refuse a configuration that cannot work. Raises ConfigError with field, value and remedy."""
    check_models(config)
    check_single_lines(config)
    check_folder(config.runs_dir, config.name)
    for model, own in config.by_model.items():
        with errors_of_model(model):
            _check_model(own)
    check_bounds(config)
    check_adapter_names(config.models)
    check_hardware(config)
    walltime_minutes(config.cluster.slurm.time)
    check_slurm(config.cluster)
    _check_serve(config.serve)


def _check_model(config: Config) -> None:
    """Check the settings that each model of a job has of its own."""
    _check_pools(config.topology)
    check_adapters(config)
    check_planner(config)
    check_scale_out(config)
    _check_sleep_mode(config)
    check_allowed_media(config.engine.allowed_media)
    mounted = {"model.path": config.model.path, "runs_dir": str(Path(config.runs_dir).absolute())}
    mounted |= {f"model.lora.{name}": path for name, path in config.model.lora.items()}
    check_container(config.engine.container, mounted)


def _check_pools(topology: Topology) -> None:
    used = dict(topology.pools)
    for role in Role:
        name, workers = f"topology.{role}.workers", getattr(topology, role).workers
        if role in used and workers < 1:
            raise ConfigError(f"{name}={workers} must be at least 1", hint=f"{name}=1")
        if role not in used and workers:
            kind = (
                TopologyKind.aggregated if role is Role.aggregated else TopologyKind.disaggregated
            )
            what = f"{name}={workers} has no place in kind={topology.kind}"
            raise ConfigError(what, hint=f"{name}=0, or topology={kind}")


def _check_serve(serve: Serve) -> None:
    if bool(serve.tls_cert) != bool(serve.tls_key):
        hint = "serve.tls_cert=cert.pem serve.tls_key=key.pem"
        raise ConfigError("serve.tls_cert and serve.tls_key need each other", hint=hint)
    for origin in serve.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            what = f"serve.allowed_origins: {origin!r} is not an origin"
            hint = "scheme, host and port without a path, such as http://localhost:3000, or *"
            raise ConfigError(what, hint=hint)


def _check_sleep_mode(config: Config) -> None:
    if config.engine.sleep_mode and config.planner.mode is not PlannerMode.off:
        what = f"engine.sleep_mode=true cannot be combined with planner.mode={config.planner.mode}"
        raise ConfigError(what, hint="planner=off, or engine.sleep_mode=false")
