"""TensorRT-LLM's protocol for prefill and decode (`--pd-protocol trtllm`).

Internally a hand-off is always vLLM's `kv_transfer_params`; here they travel as the opaque state.
As in TensorRT-LLM, a decode worker that rejects a request does not notify the prefill worker.
Source: TensorRT-LLM 1.3 and 1.4, tensorrt_llm/serve/openai_protocol.py, serve/disagg_auth.py and
executor/base_worker.py.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.kv_transfer_params import KvTransferParams
from hpc_dynamo.simulator.sequence import SequenceGroup


class DisaggregatedParams(msgspec.Struct, forbid_unknown_fields=True):
    """Field `disaggregated_params` of requests and of choices in responses."""

    request_type: Literal["context_only", "generation_only", "context_and_generation"]
    first_gen_tokens: list[int] | None = None
    ctx_request_id: int | None = None
    encoded_opaque_state: str | None = None
    draft_tokens: list[int] | None = None
    disagg_request_id: int | None = None
    ctx_dp_rank: int | None = None
    ctx_info_endpoint: str | None = None
    schedule_style: int | None = None
    ctx_usage: dict[str, Any] | None = None  # usage of the prefill worker

    def kv_transfer_params(self, prompt: list[int] | None) -> KvTransferParams | None:
        """Convert to vLLM's form, with the token ids of the prompt. Raises RequestRejected."""
        if self.request_type == "context_only":
            return KvTransferParams(do_remote_decode=True)
        if self.request_type != "generation_only":
            return None
        names = ("first_gen_tokens", "ctx_request_id", "encoded_opaque_state")
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise RequestRejected(f"disaggregated_params lacks {', '.join(missing)}")
        return msgspec.structs.replace(self._opaque_state(), prompt_token_ids=prompt)

    def _opaque_state(self) -> KvTransferParams:
        try:
            state = base64.b64decode(self.encoded_opaque_state or "", validate=True)
            return msgspec.json.decode(state, type=KvTransferParams)
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError) as e:
            raise RequestRejected(f"encoded_opaque_state cannot be read: {e}") from e


def check_signature(
    params: DisaggregatedParams | None, headers: Mapping[str, str], key: str
) -> None:
    """Raise RequestRejected if a location of KV blocks is not signed with `key`, unless empty."""
    if not key or params is None or params.encoded_opaque_state is None:
        return
    signed = {"ctx_info_endpoint": None, "encoded_opaque_state": params.encoded_opaque_state}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()
    expected = f"sha256={hmac.new(key.encode(), text, hashlib.sha256).hexdigest()}"
    if not hmac.compare_digest(expected, headers.get("x-trtllm-disagg-auth", "")):
        raise RequestRejected("Invalid internal disaggregated request authentication")


def as_trtllm(
    response: dict[str, Any], group: SequenceGroup, params: DisaggregatedParams | None
) -> dict[str, Any]:
    """Move the hand-off of a complete response to where TensorRT-LLM has it.

    Mutates and returns `response`. `params` are those of the request.
    """
    state = response.pop("kv_transfer_params")
    response["prompt_token_ids"] = group.prompt if group.keep_blocks else None
    choice = response["choices"][0]
    choice["disaggregated_params"] = None
    if state and params:
        choice["disaggregated_params"] = DisaggregatedParams(
            request_type="context_only",
            first_gen_tokens=group.choices[0].output_tokens,
            ctx_request_id=int(group.id.rpartition("-")[2]),
            encoded_opaque_state=base64.b64encode(msgspec.json.encode(state)).decode(),
            disagg_request_id=params.disagg_request_id,
        )
    return response
