"""A vLLM worker over several nodes, without Ray.

Where a replica is spread its nodes are told by `--nnodes`: the first runs server and scheduler, the
others executors. Where each node holds whole replicas they are data-parallel ranks of one server.
Further parts are `--headless`, which `vllm serve` alone knows.

Source: vLLM 0.32, engine/arg_utils.py (create_engine_config), entrypoints/cli/serve.py
(run_headless), v1/executor/multiproc_executor.py, config/parallel.py (nnodes_within_dp); of
pipelines distributed/kv_transfer/kv_connector/v1/nixl/ (base_worker.py, pull_worker.py).
"""

from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Config, Pool, Role
from hpc_dynamo.engines.contract import Placement, parse_json, user_options
from hpc_dynamo.engines.shards import (
    multi_node_workers,
    node_options,
    pool_of,
    replicas_per_shard,
    require_equal_shards,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker

SERVER, HEADLESS = "vllm.entrypoints.openai.api_server", "hpc_dynamo_vllm"
RENDEZVOUS_PORT_COUNT = 2  # torch.distributed, the handshake of data-parallel ranks
EXPERTS = "enable-expert-parallel"
NIXL = "NixlConnector"


def check_shards(config: Config, plan: Plan) -> None:
    """Refuse what vLLM cannot spread over nodes. Raises ConfigError."""
    for worker in multi_node_workers(plan):
        pool = pool_of(config, worker.role)
        if pool.data_parallel > 1 and replicas_per_shard(pool, worker):
            continue
        require_equal_shards("vllm", config, worker)
        if pool.data_parallel > 1:
            _check_replicas(config, worker, pool)


def _check_replicas(config: Config, worker: Worker, pool: Pool) -> None:
    """Ranks of a dense model take themselves for servers of their own, with ports that differ on
    each node, so that the nodes of one never meet."""
    nodes, role = len(worker.shards), worker.role
    what = f"topology.{role}: {pool.data_parallel} data-parallel replicas over {nodes} nodes"
    if not user_options(config).get(EXPERTS):
        each = f"topology.{role}.workers={pool.data_parallel * pool.workers}"
        hint = f"{each} topology.{role}.data_parallel=1; mixtures of experts: engine.args.{EXPERTS}"
        raise ConfigError(f"{what}, each over several: not with a dense model", hint=f"{hint}=true")
    if nodes % pool.data_parallel:
        hint = "tensor x pipeline parallel that is whole nodes"
        raise ConfigError(f"{what}: a node would hold parts of two", hint=hint)


def check_stages(config: Config) -> None:
    """A decode worker pulls from a prefill worker's first pipeline stage alone, and has no stages
    itself. Raises ConfigError."""
    transfer = parse_json(user_options(config).get("kv-transfer-config")) or {}
    if not isinstance(transfer, Mapping):
        what = f"engine.args.kv-transfer-config={transfer} must be a mapping"
        raise ConfigError(what, hint="engine.args.kv-transfer-config.kv_connector=…")
    connector = transfer.get("kv_connector", NIXL)
    for role, pool in config.topology.pools:
        if connector == NIXL and role is not Role.aggregated and pool.pipeline_parallel > 1:
            what = f"topology.{role}.pipeline_parallel={pool.pipeline_parallel}: vLLM's {NIXL} "
            what += "hands no KV cache over from or to pipeline stages"
            one = f"topology.{role}.pipeline_parallel=1"
            hint = f"{one} topology.{role}.tensor_parallel=N, or topology=aggregated"
            raise ConfigError(what, hint=hint)


def shard_options(config: Config, place: Placement) -> dict[str, Any]:
    """What a part is told beside the options of every worker."""
    if place.rendezvous is None:
        return {}
    pool = pool_of(config, place.worker.role)
    options: dict[str, Any] = {"headless": True} if place.shard_index else {}
    if pool.data_parallel > 1:
        options |= {
            "data-parallel-address": place.rendezvous.address,
            "data-parallel-rpc-port": place.rendezvous.ports[1],
        }
        if counts := replicas_per_shard(pool, place.worker):
            return options | _ranks(counts, place.shard_index)
    return options | node_options(place) | {"distributed-executor-backend": "mp"}


def _ranks(counts: tuple[int, ...], part: int) -> dict[str, Any]:
    """To the first a start rank would mean that each node has a server of its own."""
    start = {"data-parallel-start-rank": sum(counts[:part])} if part else {}
    return {"data-parallel-size-local": counts[part], **start}


def server_module(place: Placement) -> str:
    return HEADLESS if place.shard_index else SERVER
