"""Request fields that clients may not set, each with the reason.

They address processes or KV blocks of an engine, or run code in it. Checked against vLLM 0.32 and
SGLang 0.5.23. All other fields go to the engine unchanged. `cache_salt`, `extra_key`, `priority`,
`session_id`, `custom_params`, `mm_processor_kwargs` and `return_hidden_states` are among them: they
affect only the request of their client, and the engine bounds or disables them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from hpc_dynamo.dispatch.refusal import refusal
from hpc_dynamo.engines import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Body, field_value
from hpc_dynamo.engines.pd_protocol import UNREADABLE

# Removed. Reserved in any object of a body, since engines copy some objects into their own.
NESTED_RESERVED_FIELDS: Mapping[str, str] = {
    "bootstrap_host": "address of KV blocks",
    "bootstrap_pair_key": "address of KV blocks",
    "bootstrap_port": "address of KV blocks",
    "bootstrap_room": "address of KV blocks",
    "decode_tp_size": "layout of the KV blocks of another worker",
    "disaggregated_params": "address of KV blocks",
    "ec_transfer_params": "address of encoder outputs",
    "encoder_urls": "address of encoder outputs",
    "kv_hints": "instructions for the KV cache of the engine",
    "http_worker_ipc": "address of the process that receives the response",
    "kv_router_hint": "address of KV blocks",
    "kv_transfer_params": "address of KV blocks",
}
# Removed. A client that sets one gets the same response without it.
RESERVED_FIELDS: Mapping[str, str] = {
    **NESTED_RESERVED_FIELDS,
    "attention_dp_rank": "selects a process of the engine, which the router does",
    "attention_dp_relax": "selects a process of the engine, which the router does",
    "data_parallel_rank": "selects a process of the engine, which the router does",
    "disagg_prefill_dp_rank": "selects a process of the engine, which the router does",
    "request_id": "name of the request in the engine, which the frontend sets",
    "rid": "name of the request in the engine, which the frontend sets",
    "routed_dp_rank": "selects a process of the engine, which the router does",
}
# Answered with 400, also in any object of a body: without them the response would be another one.
REFUSED_FIELDS: Mapping[str, str] = {
    "custom_logit_processor": "SGLang executes the pickled code that it contains",
    "lora_id": "name the LoRA adapter in `model`",
    "lora_path": "name the LoRA adapter in `model`",
    "lora_request": "TensorRT-LLM loads the file that it names",
    "mm_hashes": "it names media that the engine keeps for all clients",
    "session_params": "it continues or ends the requests of other clients",
}
NESTED_NAMES = NESTED_RESERVED_FIELDS.keys() | REFUSED_FIELDS.keys()
BACKGROUND = "background"  # on SGLang's own paths: continue without the client
VLLM_XARGS = "vllm_xargs"  # vLLM merges the entries of this field into its own fields
# Paths whose objects are content, such as schemas of tools, with any names in them.
CONTENT_PATHS = frozenset(
    {
        CHAT, COMPLETIONS, MESSAGES, RESPONSES, f"{MESSAGES}/count_tokens", "/detokenize",
        "/tokenize", "/v1/embeddings",
    }
)  # fmt: skip


def check_fields(path: str, body: Body) -> None:
    """Raise RequestFailed for a field that is refused, at the top or inside another field.

    The fields of `CONTENT_PATHS` are not searched, apart from `vllm_xargs`.
    """
    for name in body.keys() & REFUSED_FIELDS:
        if field_value(body[name]) is not None:
            raise refusal(f"{name} is not accepted: {REFUSED_FIELDS[name]}", name)
    if path != RESPONSES and field_value(body.get(BACKGROUND)):
        what = f"{BACKGROUND} is only accepted by {RESPONSES}: the request would not end with you"
        raise refusal(what, BACKGROUND)
    searched = (VLLM_XARGS,) if path in CONTENT_PATHS else body.keys()
    for name in searched:
        value = body.get(name)
        if not isinstance(value, msgspec.Raw) or b"{" in bytes(value):
            _check_nested(name, value)


def check_form(fields: Iterable[tuple[str, str]]) -> None:
    """Raise RequestFailed for a field of a multipart form that is refused."""
    for name, value in fields:
        if name in REFUSED_FIELDS:
            raise refusal(f"{name} is not accepted: {REFUSED_FIELDS[name]}", name)
        if name == VLLM_XARGS:
            _check_nested(name, msgspec.Raw(value.encode()))


def _check_nested(name: str, value: Any) -> None:
    """Raise RequestFailed if the value of a field has reserved names anywhere in it.

    vLLM reads them in `vllm_xargs`, and in `sampling_params` of /inference/v1/generate.
    """
    value = field_value(value)
    if value is UNREADABLE:
        raise refusal(f"{name} is not JSON", name)
    if found := NESTED_NAMES.intersection(_keys(value)):
        what = f"{name} holds {', '.join(sorted(found))}, which only the endpoint may set"
        raise refusal(what, name)


def _keys(value: Any) -> Iterator[str]:
    """Yield the names of fields at any depth. Recursion would take 200 times as long at 240."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting += [inner for inner in value.values() if isinstance(inner, dict | list)]
        elif isinstance(value, list):
            waiting += [inner for inner in value if isinstance(inner, dict | list)]
