"""Prefill/decode protocol of TensorRT-LLM's `trtllm-serve`, prefill first.

The `disaggregated_params` of the prefill answer give the location of the KV blocks and the first
token. With another `request_type` they are copied into the decode request. The decode worker pulls
the blocks and continues after that token. The token ids of the prompt are copied as well, so that
the decode worker does not tokenize.

Source: TensorRT-LLM 1.3 and 1.4, tensorrt_llm/serve/openai_disagg_service.py (`context_first`)
and openai_protocol.py.
"""

import secrets
from collections.abc import Sequence

from hpc_dynamo.engines.pd_protocol import CHAT, COMPLETIONS, Body, field_value
from hpc_dynamo.engines.trtllm.signature import Header, signature_headers
from hpc_dynamo.errors import RequestFailed

# Removed from prefill requests, which compute one token. Fields that shape this token stay, since
# the client gets it with its log-probabilities.
DROPPED = frozenset({"best_of", "min_tokens", "n", "stream_options", "use_beam_search"})

CONTINUED = ("length", "not_finished")  # finish reasons after which decoding follows

# Workers use smaller ids themselves (MIN_GLOBAL_ID of llmapi/disagg_utils.py).
FIRST_REQUEST_ID, END_REQUEST_ID = 1 << 42, 1 << 63


class TrtllmPdProtocol:
    """Implements engines.pd_protocol.SequentialProtocol.

    With `signs` the location of the blocks is signed, and the decode worker gets the usage of the
    prefill worker: it reports the prompt tokens that this one had in its cache. Versions before 1.4
    refuse the field.
    """

    paths = frozenset({CHAT, COMPLETIONS})

    def __init__(self, *, signs: bool = True) -> None:
        self._signs = signs

    def prefill(self, body: Body) -> Body:
        kept = {k: v for k, v in body.items() if k not in DROPPED}
        limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        number = FIRST_REQUEST_ID + secrets.randbelow(END_REQUEST_ID - FIRST_REQUEST_ID)
        params = {"request_type": "context_only", "disagg_request_id": number}
        return kept | {limit: 1, "stream": False, "disaggregated_params": params}

    def decode(self, body: Body, prefilled: Body) -> Body:
        """Copy transfer parameters and token ids of the prefill answer. Raises RequestFailed."""
        choices = field_value(prefilled.get("choices"))
        first = choices[0] if choices else {}
        if first.get("finish_reason", "length") not in CONTINUED:
            return body  # it ended with its first token, so nothing was kept
        params = first.get("disaggregated_params") or {}
        if params.get("ctx_request_id") is None:
            what = "the prefill worker's answer has no disaggregated_params"
            hint = "check that engine.args.extra sets a backend in cache_transceiver_config"
            raise RequestFailed(what, status=502, hint=hint)
        fields = {"disaggregated_params": params | {"request_type": "generation_only"}}
        if self._signs and field_value(prefilled.get("usage")):
            fields["disaggregated_params"]["ctx_usage"] = prefilled["usage"]
        tokens = prefilled.get("prompt_token_ids")
        if field_value(tokens):
            fields["prompt_token_ids" if "messages" in body else "prompt"] = tokens
        return body | fields

    def decode_headers(self, decode_body: Body, token: str) -> Sequence[Header]:
        params = decode_body.get("disaggregated_params")
        return signature_headers(params, token) if self._signs and isinstance(params, dict) else ()

    def release(self, decode_body: Body) -> Body | None:
        """Return None: the prefill worker frees its blocks after kv_transfer_timeout_ms."""
        return None
