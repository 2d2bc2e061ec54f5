"""Fields of `simulate`: a trace against a simulated deployment in virtual time."""

from dataclasses import dataclass

from hpc_dynamo.config.schema.setting import setting


@dataclass(frozen=True)
class Simulate:
    """Trace and engine model of `hpc-dynamo simulate`.

    The deployment itself is described by the other sections: topology, router, planner, serve and
    engine.max_num_seqs.
    """

    trace: str = setting(
        "",
        "JSON Lines file with timestamp (ms), input_length, output_length and hash_ids.",
        path=True,
    )
    max_requests: int = setting(
        0, "Number of requests to replay. 0: all.", unit="requests", ge=0, was="requests"
    )
    speed: float = setting(1.0, "Factor on the request rate of the trace.", gt=0)
    timing_model: str = setting(
        "h100-8b",
        "Timing model of an engine step: a built-in name, or FILE.json.",
        path=True,
        was="timing",
    )
    max_num_batched_tokens: int = setting(
        2048, "Maximum number of tokens of one step.", unit="tokens", ge=1, was="step_tokens"
    )
    kv_cache_tokens: int = setting(
        400_000,
        "KV cache size of one worker, or of each data-parallel rank of it.",
        unit="tokens",
        ge=1,
        was="cache_tokens",
    )
    kv_transfer_us_per_token: float = setting(
        5.0,
        "Time to transfer the KV cache of one token between workers.",
        unit="µs",
        ge=0,
        was="transfer_us",
    )
    role_change_s: float = setting(
        0.5, "Time of a role change after the drain.", unit="s", ge=0, was="turn_s"
    )
    search_split: bool = setting(
        False, "Search for the best split of prefill and decode workers.", was="search"
    )
    plot: str = setting(
        "",
        "PNG, SVG or PDF file to plot load, roles and latencies over time.",
        path=True,
        was="picture",
    )
