"""KV event options of engines that publish in vLLM's format, over sockets in a private folder."""

from typing import Any

from hpc_dynamo.config import Policy, Router
from hpc_dynamo.engines.adapter import EventEndpoints, Placement
from hpc_dynamo.topology import Worker

# Steps that an engine keeps for replays. vLLM's replay socket silently drops what exceeds ZMQ's
# queue of 1,000 messages: with the default of 10,000 steps a busy machine lost up to a third.
EVENT_BUFFER_STEPS = 900


def uses_kv_events(router: Router) -> bool:
    """Return True if the router reads KV events."""
    return router.kv_events and router.policy is Policy.kv


def shard_ranks(worker: Worker, ranks: int, index: int) -> tuple[int, ...]:
    """Return the data-parallel ranks whose scheduler runs on a shard of a worker.

    That is the shard of the first GPU of a rank. vLLM (v1/engine/utils.py) and SGLang
    (managers/data_parallel_controller.py) place ranks in order, and number them over all nodes.
    """
    sizes = [len(shard.gpus) for shard in worker.shards]
    if len(sizes) == 1:
        return tuple(range(ranks))
    first, end, total = sum(sizes[:index]), sum(sizes[: index + 1]), sum(sizes)
    return tuple(rank for rank in range(ranks) if first <= rank * total // ranks < end)


def ipc_event_endpoints(
    router: Router, placement: Placement, ranks: int = 1
) -> EventEndpoints | None:
    """Return endpoints in the node's private folder; None if the router reads no KV events.

    Each shard publishes those of its ranks, see `shard_ranks`. If the worker has only one rank, the
    first shard does. vLLM 0.32 and SGLang 0.5.23 refuse ipc endpoints for data-parallel ranks above
    0, unless their name contains `inproc`: then each rank appends its number
    (offset_endpoint_port in distributed/kv_events.py and srt/disaggregation/kv_events.py).
    """
    dp_ranks = shard_ranks(placement.worker, ranks, placement.shard_index) if ranks > 1 else ()
    if not (uses_kv_events(router) and placement.events_folder):
        return None
    if not dp_ranks and (ranks > 1 or placement.shard_index):
        return None
    name = f"inproc-{placement.worker.rank}" if ranks > 1 else str(placement.worker.rank)
    base = f"ipc://{placement.events_folder}/{name}"
    return EventEndpoints(base, f"{base}r", dp_ranks)


def kv_events_config(endpoints: EventEndpoints) -> dict[str, Any]:
    """Return the value of vLLM's option --kv-events-config."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": endpoints.live,
        "replay_endpoint": endpoints.replay,
        "buffer_steps": EVENT_BUFFER_STEPS,
    }
