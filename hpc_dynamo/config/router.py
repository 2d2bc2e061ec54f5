"""Fields of `router`."""

from dataclasses import dataclass
from enum import StrEnum


class Policy(StrEnum):
    """How the router chooses among workers."""

    kv = "kv"  # where the most of the prompt is cached, weighed against load
    least_loaded = "least_loaded"
    round_robin = "round_robin"
    random = "random"
    power_of_two = "power_of_two"  # the less loaded of two at random
    session = "session"  # requests with the same X-Session-Id to the same worker
    direct = "direct"  # to the worker that X-Worker-Rank names


@dataclass(frozen=True)
class Router:
    """Settings of the choice of a worker for a request. Prompt tokens are counted in blocks.

    The cost of a worker, in blocks, is overlap_weight x (recompute_weight x this prompt's uncached
    blocks + blocks of prompts before it) + decode_weight x blocks that it holds for answers. In a
    batch recompute_weight is at least 2: throughput matters, not the next answer.
    """

    policy: Policy = Policy.kv
    block_tokens: int = 16  # compared in whole blocks
    index_capacity_blocks: int = 4_000_000  # known over all workers; some 200 bytes each
    kv_events: bool = True  # engines tell what they cache; else it is guessed from our decisions
    approximate_ttl_s: float = 120.0  # without events: how long a prompt is taken for cached
    overlap_weight: float = 1.0
    recompute_weight: float = (
        1.0  # weight of this prompt's uncached blocks; above 1: fewer copies of prefixes
    )
    decode_weight: float = 0.02
    temperature: float = 0.0  # above 0: also costlier workers, the more the higher
    max_prefill_tokens_per_worker: int | None = (
        None  # of prompts ahead: a worker with more gets nothing
    )
    conditional_disaggregation: bool = (
        True  # decode workers compute what a hand-over would only delay
    )
    decode_prefill_penalty: float = (
        2.0  # ... if that is so many times quicker: it holds up their streams
    )
    transfer_cost_tokens: int | None = None  # computed in the time of a hand-over; None: measured
