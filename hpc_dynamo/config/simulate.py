"""A job in virtual time: `hpc-dynamo simulate`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Simulate:
    """What is put on the modelled job, and how its engines are modelled.

    The rest is the configuration of the job itself: topology, router, planner, serve,
    engine.max_num_seqs.
    """

    trace: str = ""  # JSON lines: timestamp in ms, input_length, output_length, hash_ids
    max_requests: int = 0  # so many of it; 0: all
    speed: float = 1.0  # its requests come so many times as fast
    timing_model: str = "h100-8b"  # of a step: a profile of the simulator, or FILE.json
    max_num_batched_tokens: int = 2048  # that one step computes at most
    kv_cache_tokens: int = 400_000  # of KV cache in one worker
    kv_transfer_us_per_token: float = 5.0  # for the KV cache of a token from one worker to another
    role_change_s: float = 0.5  # of a change of role, after the drain
    search_split: bool = False  # the split of prefill and decode workers that does best
    plot: str = ""  # PNG, SVG or PDF of load, roles and latencies over time
