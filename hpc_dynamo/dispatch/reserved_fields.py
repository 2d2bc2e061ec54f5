"""Request fields that only the dispatcher may set.

A worker that pulls KV blocks from a wrong address crashes, so clients must not set the address.
Fields that choose the process of an engine, or name its request, could harm other requests.
"""

from collections.abc import Iterator
from typing import Any

# Names that are reserved in any object of a body, since engines copy some objects into their own.
NESTED_RESERVED_FIELDS = frozenset(
    {
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "disaggregated_params",
        "ec_transfer_params", "kv_transfer_params",
    }
)  # fmt: skip
# Ranks select a process of the engine, which the router does. An engine knows a request by its id,
# which the frontend sets.
RESERVED_FIELDS = NESTED_RESERVED_FIELDS | {
    "data_parallel_rank", "disagg_prefill_dp_rank", "request_id", "rid", "routed_dp_rank",
}  # fmt: skip
VLLM_XARGS = "vllm_xargs"  # vLLM merges the entries of this field into its own fields


def nested_reserved_fields(value: Any) -> frozenset[str]:
    """Return the reserved names that are keys of objects anywhere inside a value.

    vLLM reads them in `vllm_xargs`, and in `sampling_params` of /inference/v1/generate.
    """
    return NESTED_RESERVED_FIELDS.intersection(_keys(value))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
