"""Values that cannot work, refused before anything starts."""

import re
from pathlib import Path

from hpc_dynamo.config.adapters import check_adapters, check_apart
from hpc_dynamo.config.cluster import Cluster
from hpc_dynamo.config.container import check_container
from hpc_dynamo.config.grow import check_grow
from hpc_dynamo.config.kinds import check_kinds
from hpc_dynamo.config.lines import check_folder, check_lines
from hpc_dynamo.config.planner import PlannerMode
from hpc_dynamo.config.reshaping import check_planner
from hpc_dynamo.config.sbatch import check_gpu_type, check_sbatch
from hpc_dynamo.config.schema import Config, Role, Serve, Topology, TopologyKind
from hpc_dynamo.config.several import check_models, errors_of_model
from hpc_dynamo.errors import ConfigError

MIN_HEARTBEAT_TIMEOUT_S = 3.0  # a few heartbeats

# As browsers send it: lower case, without a path. Browser extensions have their own schemes.
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+")


def validate(config: Config) -> None:
    """Refuse values that cannot work, naming field, value and remedy. Raises ConfigError."""
    check_models(config)
    check_lines(config)
    check_folder(config.runs_dir, config.name)
    for model, one in config.by_model.items():
        with errors_of_model(model):
            _check_one(one)
    check_apart(config)
    check_kinds(config)


def _check_one(config: Config) -> None:
    """Of a run of one model."""
    _check_pools(config.topology)
    _check_numbers(config)
    check_adapters(config)
    if config.cluster.heartbeat_timeout_s < MIN_HEARTBEAT_TIMEOUT_S:
        what = f"cluster.heartbeat_timeout_s={config.cluster.heartbeat_timeout_s} is below "
        what += f"{MIN_HEARTBEAT_TIMEOUT_S}"
        raise ConfigError(
            what, hint="cluster.heartbeat_timeout_s=30; a busy node may be slow to speak"
        )
    walltime_minutes(config.cluster.slurm.time)
    _check_serve(config.serve)
    check_planner(config)
    _check_sleep(config)
    check_grow(config)
    mounted = {"model.path": config.model.path, "runs_dir": str(Path(config.runs_dir).absolute())}
    mounted |= {f"model.lora.{name}": path for name, path in config.model.lora.items()}
    check_container(config.engine.container, mounted)
    _check_slurm(config.cluster)


def _check_pools(topology: Topology) -> None:
    used = dict(topology.pools)
    for role, pool in used.items():
        for name, value in vars(pool).items():
            if isinstance(value, int):
                _at_least_one(f"topology.{role}.{name}", value)
    for role in Role:
        workers = getattr(topology, role).workers
        if role not in used and workers:
            kind = (
                TopologyKind.aggregated if role is Role.aggregated else TopologyKind.disaggregated
            )
            hint = f"topology.{role}.workers=0, or topology={kind}"
            what = f"topology.{role}.workers={workers} has no place in kind={topology.kind}"
            raise ConfigError(what, hint=hint)


def _check_numbers(config: Config) -> None:
    engine, cluster, batch = config.engine, config.cluster, config.batch
    least_one = {
        "topology.nodes": config.topology.nodes,
        "engine.max_num_seqs": engine.max_num_seqs,
        "engine.cpus": engine.cpus,
        "batch.concurrency": batch.concurrency,
        "router.block_tokens": config.router.block_tokens,
        "router.index_capacity_blocks": config.router.index_capacity_blocks,
        "router.max_prefill_tokens_per_worker": config.router.max_prefill_tokens_per_worker,
        "serve.frontend_processes": config.serve.frontend_processes,
        "serve.max_queued_requests": config.serve.max_queued_requests,
        "serve.max_requests_per_worker": config.serve.max_requests_per_worker,
        "cluster.cpus_per_node": cluster.cpus_per_node,
        "simulate.max_num_batched_tokens": config.simulate.max_num_batched_tokens,
        "simulate.kv_cache_tokens": config.simulate.kv_cache_tokens,
    }
    for name, value in least_one.items():
        if value is not None:
            _at_least_one(name, value)
    positive = {
        "simulate.speed": config.simulate.speed,
        "engine.memory_gb": engine.memory_gb,
        "engine.ready_timeout_s": engine.ready_timeout_s,
        "engine.stop_timeout_s": engine.stop_timeout_s,
        "batch.request_timeout_s": batch.request_timeout_s,
        "router.approximate_ttl_s": config.router.approximate_ttl_s,
        "router.decode_prefill_penalty": config.router.decode_prefill_penalty,
        "serve.request_timeout_s": config.serve.request_timeout_s,
        "serve.queue_timeout_s": config.serve.queue_timeout_s,
        "serve.max_body_mb": config.serve.max_body_mb,
        "serve.max_buffered_mb": config.serve.max_buffered_mb,
        "cluster.bootstrap.timeout_s": cluster.bootstrap.timeout_s,
        "cluster.bootstrap.mpi_timeout_s": cluster.bootstrap.mpi_timeout_s,
    }
    for field_name, number in positive.items():
        if number is not None and number <= 0:
            raise ConfigError(f"{field_name}={number} must be above 0", hint=f"{field_name}=60")
    not_negative = {
        "batch.max_retries": batch.max_retries,
        "engine.max_restarts": engine.max_restarts,
        "router.overlap_weight": config.router.overlap_weight,
        "router.recompute_weight": config.router.recompute_weight,
        "router.decode_weight": config.router.decode_weight,
        "router.temperature": config.router.temperature,
        "router.transfer_cost_tokens": config.router.transfer_cost_tokens or 0,
        "cluster.memory_gb_per_node": cluster.memory_gb_per_node or 0,
    }
    for field_name, number in not_negative.items():
        if number < 0:
            raise ConfigError(f"{field_name}={number} must not be negative", hint=f"{field_name}=0")


def _check_slurm(cluster: Cluster) -> None:
    check_sbatch(cluster.slurm, cluster.slurm.extra, "cluster.slurm.extra")
    check_gpu_type(cluster.slurm.gpu_type, "cluster.slurm.gpu_type")
    for kind, given in cluster.hardware.items():
        check_sbatch(cluster.slurm, given.extra, f"cluster.hardware.{kind}.extra")
        check_gpu_type(given.gpu_type, f"cluster.hardware.{kind}.gpu_type")


def _check_serve(serve: Serve) -> None:
    if not 0 <= serve.port < 65536:
        raise ConfigError(f"serve.port={serve.port} is not a port", hint="0 for any free one")
    if bool(serve.tls_cert) != bool(serve.tls_key):
        hint = "serve.tls_cert=cert.pem serve.tls_key=key.pem"
        raise ConfigError("serve.tls_cert and serve.tls_key need each other", hint=hint)
    for origin in serve.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            what = f"serve.allowed_origins: {origin!r} is not an origin"
            hint = "scheme, host and port without a path, such as http://localhost:3000, or *"
            raise ConfigError(what, hint=hint)


def _check_sleep(config: Config) -> None:
    if config.engine.sleep_mode and config.planner.mode is not PlannerMode.off:
        what = f"engine.sleep_mode=true with planner.mode={config.planner.mode}: both say who works"
        raise ConfigError(what, hint="planner=off, or engine.sleep_mode=false")


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value} must be at least 1", hint=f"{name}=1")


_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?$")


def walltime_minutes(text: str) -> int:
    """Minutes of a Slurm time, rounded up: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S (man sbatch)."""
    match = _TIME.match(text)
    if match is None:
        hint = "minutes, HH:MM:SS or D-HH:MM:SS, such as cluster.slurm.time=02:30:00"
        raise ConfigError(f"cluster.slurm.time={text} is not a time", hint=hint)
    days, parts = match["d"], [int(match[k]) for k in "abc" if match[k]]
    weights = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    seconds = sum(w * p for w, p in zip(weights, parts, strict=False)) + 86400 * int(days or 0)
    if seconds == 0:
        hint = "cluster.slurm.time=01:00:00"
        raise ConfigError(f"cluster.slurm.time={text} leaves no time", hint=hint)
    return -(-seconds // 60)
