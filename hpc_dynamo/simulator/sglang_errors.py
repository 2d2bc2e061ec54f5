"""SGLang's forms of an error, and requests that only SGLang refuses.

/v1/messages    {"type": "error", "error": {"type": …, "message": …}}
/v1/responses   {"error": {"message": …, "type": …, "param": …, "code": …}}
others          {"object": "error", "message": …, "type": …, "param": null, "code": …}
"""

from collections.abc import Iterable
from typing import Any

from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.generation_request import CompletionRequest, GenerationRequest
from hpc_dynamo.simulator.sequence import SequenceGroup

Json = dict[str, Any]

RESERVED_TOKENS = 6  # not available to prompts (managers/scheduler.py)


def sglang_error_body(body: Json, path: str) -> Json:
    """Return the body of an error in SGLang's form."""
    error: Json = body["error"] | {"param": None}
    if path == "/v1/responses":
        return {"error": error}
    if path == "/v1/messages":
        kind = "invalid_request_error" if error["code"] < 500 else "api_error"
        return {"type": "error", "error": {"type": kind, "message": error["message"]}}
    return {"object": "error", **error}


def check_sglang_request(request: GenerationRequest) -> None:
    """Raise RequestRejected for a null where SGLang needs an integer."""
    fields = ("n", "max_tokens") if isinstance(request, CompletionRequest) else ("n",)
    for name in fields:
        if getattr(request, name) is None:
            raise RequestRejected(f"{name}: Input should be a valid integer", name)


def check_sglang_lengths(groups: Iterable[SequenceGroup], max_model_len: int) -> None:
    """Raise RequestRejected for a prompt that leaves less of the context than SGLang reserves."""
    longest, limit = max(len(group.prompt) for group in groups), max_model_len - RESERVED_TOKENS
    if longest > limit:
        what = f"Input length ({longest} tokens) exceeds the maximum allowed length"
        raise RequestRejected(f"{what} ({limit} tokens).")
