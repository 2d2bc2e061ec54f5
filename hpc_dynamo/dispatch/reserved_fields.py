"""Request fields that only the dispatcher may set.

A worker that pulls KV blocks from a wrong address crashes, so clients must not set the address.
"""

from collections.abc import Iterator
from typing import Any

RESERVED_FIELDS = frozenset(
    {
        "bootstrap_host", "bootstrap_port", "bootstrap_room", "disaggregated_params",
        "ec_transfer_params", "kv_transfer_params",
    }
)  # fmt: skip


def nested_reserved_fields(value: Any) -> frozenset[str]:
    """Return the reserved names that are keys of objects anywhere inside a value.

    vLLM reads them in `vllm_xargs`, and in `sampling_params` of /inference/v1/generate.
    """
    return RESERVED_FIELDS.intersection(_keys(value))


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
