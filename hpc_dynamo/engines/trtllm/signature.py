"""Signature of the location of KV blocks in a request to a decode worker.

A worker with `internal_request_auth_key` in its options file refuses a location that is not signed
with this key. So no other program can make it fetch memory from an address.

Source: TensorRT-LLM, tensorrt_llm/serve/disagg_auth.py at 0cfda24b3c9d, and its later form that
only warns if there is no key.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

KEY_FIELD = "internal_request_auth_key"
HEADER = b"x-trtllm-disagg-auth"
PURPOSE = b"hpc-dynamo: internal_request_auth_key of TensorRT-LLM"

Header = tuple[bytes, bytes]


def signing_key(token: str) -> str:
    """Return the key of a run's workers. The run's token does not follow from it."""
    return hmac.new(token.encode(), PURPOSE, hashlib.sha256).hexdigest()


def signature_headers(params: Mapping[str, Any], token: str) -> list[Header]:
    """Return the header for `disaggregated_params` that give a location; empty for others."""
    endpoint, state = params.get("ctx_info_endpoint"), params.get("encoded_opaque_state")
    if endpoint is None and state is None:
        return []
    if isinstance(endpoint, list):
        endpoint = endpoint[0] if endpoint else None
    signed = {"ctx_info_endpoint": endpoint, "encoded_opaque_state": state}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    digest = hmac.new(signing_key(token).encode(), text, hashlib.sha256).hexdigest()
    return [(HEADER, f"sha256={digest}".encode())]
