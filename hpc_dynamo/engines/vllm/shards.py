"""vLLM workers over several nodes, without Ray: checks and options.

If one replica spans nodes, they are connected by `--nnodes`: the first node runs the server and
the scheduler, the others run executors. If each node holds whole replicas, they are data-parallel
ranks of one server. All shards but the first run `--headless`, which only `vllm serve` accepts.

Source: vLLM 0.32, engine/arg_utils.py (create_engine_config), entrypoints/cli/serve.py
(run_headless), v1/executor/multiproc_executor.py, config/parallel.py (nnodes_within_dp); pipeline
stages: distributed/kv_transfer/kv_connector/v1/nixl/ (base_worker.py, pull_worker.py).
"""

from typing import Any

from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines.adapter import Placement
from hpc_dynamo.engines.options import user_options
from hpc_dynamo.engines.shards import (
    multi_node_workers,
    node_options,
    replicas_per_shard,
    require_equal_shards,
)
from hpc_dynamo.engines.vllm.kv_connectors import NIXL, user_nixl
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import Plan, Worker

SERVER, HEADLESS = "vllm.entrypoints.openai.api_server", "hpc_dynamo_vllm"
RENDEZVOUS_PORT_COUNT = 2  # torch.distributed, the handshake of data-parallel ranks
EXPERTS = "enable-expert-parallel"


def check_shards(config: Config, plan: Plan) -> None:
    """Raise ConfigError for workers that vLLM cannot run over several nodes."""
    for worker in multi_node_workers(plan):
        if worker.parallel.data > 1 and replicas_per_shard(worker):
            continue
        require_equal_shards("vllm", worker)
        if worker.parallel.data > 1:
            _check_replicas(config, worker)


def _check_replicas(config: Config, worker: Worker) -> None:
    """Refuse multi-node replicas of a dense model: each rank would act as a server of its own with
    different ports on each node, and the nodes of a replica would never connect."""
    nodes, role, replicas = len(worker.shards), worker.role, worker.parallel.data
    what = f"topology.{role}: {replicas} data-parallel replicas over {nodes} nodes"
    if not user_options(config.engine).get(EXPERTS):
        each = f"topology.{role}.workers={replicas * dict(config.topology.pools)[role].workers}"
        hint = f"{each} topology.{role}.data_parallel=1; for a mixture of experts: engine.args."
        what += ", each over several nodes: vLLM cannot do this with a dense model"
        raise ConfigError(what, hint=f"{hint}{EXPERTS}=true")
    if nodes % replicas:
        hint = "tensor_parallel times pipeline_parallel that fills whole nodes"
        raise ConfigError(f"{what}: one node would hold shards of two replicas", hint=hint)


def check_stages(config: Config) -> None:
    """Raise ConfigError for pipeline stages with NIXL: a decode worker pulls only from the first
    stage of a prefill worker, and cannot have stages itself."""
    nixl = (user_nixl(config.engine) or {}).get("kv_connector") == NIXL
    for role, pool in config.topology.pools:
        if nixl and role is not Role.aggregated and pool.pipeline_parallel > 1:
            what = f"topology.{role}.pipeline_parallel={pool.pipeline_parallel}: vLLM's NIXL "
            what += "cannot transfer KV cache from or to pipeline stages"
            one = f"topology.{role}.pipeline_parallel=1"
            hint = f"{one} topology.{role}.tensor_parallel=N, or topology=aggregated"
            raise ConfigError(what, hint=hint)


def shard_options(config: Config, placement: Placement) -> dict[str, Any]:
    """Return the options of one shard of a multi-node worker; empty for a worker on one node."""
    if placement.rendezvous is None:
        return {}
    shard, worker = placement.shard_index, placement.worker
    options: dict[str, Any] = {"headless": True} if shard else {}
    if worker.parallel.data > 1:
        options |= {
            "data-parallel-address": placement.rendezvous.address,
            "data-parallel-rpc-port": placement.rendezvous.ports[1],
        }
        if counts := replicas_per_shard(worker):
            # With a start rank the first shard would expect a server on each node.
            start = {"data-parallel-start-rank": sum(counts[:shard])} if shard else {}
            return options | {"data-parallel-size-local": counts[shard], **start}
    return options | node_options(placement) | {"distributed-executor-backend": "mp"}


def server_module(placement: Placement) -> str:
    return HEADLESS if placement.shard_index else SERVER
