"""Prefill/decode protocol of vLLM's NixlConnector.

The `kv_transfer_params` of the prefill answer give the address of the KV blocks. They are copied
unchanged into the decode request, and the decode worker pulls the blocks. The one token that the
prefill worker computed is discarded: the decode worker computes it again from the last position of
the prompt.

Source: vLLM, docs/features/nixl_connector_usage.md and its proxy example
(tests/v1/kv_connector/nixl_integration/toy_proxy_server.py). vLLM 0.32 reads and returns
`kv_transfer_params` on all four paths below
(entrypoints/{openai/chat_completion,openai/completion,openai/responses,anthropic}/protocol.py).
"""

from collections.abc import Sequence

import msgspec

from hpc_dynamo.engines.pd_protocol import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Body
from hpc_dynamo.errors import RequestFailed

REMOTE_DECODE = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


NULL = msgspec.Raw(b"null")

UNKNOWN_MODEL = "-"  # no model has this name

# Removed from prefill requests, which compute one token. vLLM would refuse some of these fields
# (min_tokens, stream_options), and others cost time (logprobs). Each of n answers would keep its
# own blocks for the whole lease.
DROPPED = frozenset(
    {
        "best_of", "echo", "logprob_token_ids", "logprobs", "max_completion_tokens", "min_tokens",
        "n", "prompt_logprobs", "return_token_ids", "stream_options", "top_logprobs",
        "use_beam_search",
    }
)  # fmt: skip


def single_token_fields(body: Body) -> Body:
    """Return fields that limit an answer to one token, without streaming. A response is not stored;
    the decode worker stores the one that the client gets."""
    if "input" in body:  # /v1/responses
        return {"max_output_tokens": 1, "stream": False, "store": False}
    limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    return {limit: 1, "stream": False}


class VllmPdProtocol:
    """Implements engines.pd_protocol.SequentialProtocol."""

    paths = frozenset({CHAT, COMPLETIONS, MESSAGES, RESPONSES})

    def prefill(self, body: Body) -> Body:
        kept = {k: v for k, v in body.items() if k not in DROPPED}
        return kept | single_token_fields(body) | {"kv_transfer_params": dict(REMOTE_DECODE)}

    def decode(self, body: Body, prefilled: Body) -> Body:
        """Copy the transfer parameters of the prefill answer. Raises RequestFailed without them."""
        if "kv_transfer_params" not in prefilled:
            what = "the prefill worker's answer has no kv_transfer_params"
            hint = "check that it runs with a kv-transfer-config of NixlConnector"
            raise RequestFailed(what, status=502, hint=hint)
        params = prefilled["kv_transfer_params"]
        if params in (None, NULL):  # vLLM kept no blocks: the answer was complete
            return body
        return body | {"kv_transfer_params": params}

    def decode_headers(self, decode_body: Body, token: str) -> Sequence[tuple[bytes, bytes]]:
        return ()

    def release(self, decode_body: Body) -> Body | None:
        # A request that is refused for its model has its transfer declined (vLLM 0.32).
        return (
            decode_body | {"model": UNKNOWN_MODEL} if "kv_transfer_params" in decode_body else None
        )
