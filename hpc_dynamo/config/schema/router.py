"""Fields of `router`: the choice of a worker for a request."""

from dataclasses import dataclass
from enum import StrEnum

from hpc_dynamo.config.schema.setting import section, setting


class Policy(StrEnum):
    """Routing policy."""

    kv = "kv"  # longest cached prefix, weighed against load
    least_loaded = "least_loaded"
    round_robin = "round_robin"
    random = "random"
    power_of_two = "power_of_two"  # the less loaded of two random workers
    session = "session"  # the same worker for requests with the same X-Session-Id
    direct = "direct"  # the worker that the header X-Worker-Rank names


@dataclass(frozen=True)
class TierCost:
    """Cost of a cached block that a worker must load, relative to computing it."""

    host: float = setting(
        0.1, "Of a block in the host memory of a worker. 0: as on the device.", ge=0, le=1
    )
    disk: float = setting(
        0.5, "Of a block on the disk of a worker. 1: as if it were not cached.", ge=0, le=1
    )


@dataclass(frozen=True)
class Router:
    """Choice of a worker for a request. Prompt tokens are counted in blocks.

    The cost of a worker, in blocks, is `overlap_weight x (recompute_weight x uncached + queued) +
    decode_weight x running`. `uncached` counts blocks of this prompt, `queued` blocks of prompts
    ahead of it, and `running` blocks of the worker's running requests. A batch uses a
    recompute_weight of at least 2, since its goal is throughput.
    """

    policy: Policy = setting(Policy.kv, "Routing policy.")
    block_tokens: int = setting(
        16, "Size of a block. Prefixes are compared in whole blocks.", unit="tokens", ge=1
    )
    index_capacity_blocks: int = setting(
        4_000_000,
        "Capacity of the index over all workers; about 200 bytes per block.",
        unit="blocks",
        ge=1,
        was="cached_blocks",
    )
    kv_events: bool = setting(
        True, "Use the KV cache events of the engines. Else the index follows routing decisions."
    )
    approximate_ttl_s: float = setting(
        120.0,
        "Without KV events: time for which a prompt counts as cached.",
        unit="s",
        gt=0,
        was="guess_ttl_s",
    )
    overlap_weight: float = setting(1.0, "Weight of prefill work in the cost of a worker.", ge=0)
    recompute_weight: float = setting(
        1.0, "Weight of the uncached blocks of a prompt. Above 1: fewer copies of a prefix.", ge=0
    )
    decode_weight: float = setting(0.02, "Weight of the blocks of running requests.", ge=0)
    tier_cost: TierCost = section(TierCost())
    temperature: float = setting(0.0, "Above 0: costlier workers are also chosen, at random.", ge=0)
    max_prefill_tokens_per_worker: int | None = setting(
        None,
        "A worker with more prompt tokens in its queue gets no request. Null: no limit.",
        unit="tokens",
        ge=1,
        was="worker_prefill_tokens",
    )
    conditional_disaggregation: bool = setting(
        True,
        "A decode worker computes a prompt itself if a transfer of its KV cache takes longer.",
        was="local_prefill",
    )
    decode_prefill_penalty: float = setting(
        2.0,
        "Required speed-up of a prefill on a decode worker, since it delays running requests.",
        gt=0,
        was="local_penalty",
    )
    transfer_cost_tokens: int | None = setting(
        None,
        "Prompt tokens computed in the time of one KV cache transfer. Null: measured.",
        unit="tokens",
        ge=0,
        was="handover_tokens",
    )
