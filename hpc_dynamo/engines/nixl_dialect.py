"""Prefill and decode as vLLM's NixlConnector wants them.

Source: vLLM, docs/features/nixl_connector_usage.md and its proxy example
(tests/v1/kv_connector/nixl_integration/toy_proxy_server.py): the prefill answer's
`kv_transfer_params` say where the KV blocks lie and go unchanged into the decode request,
whose worker pulls them. The one token that the prefill worker computed is thrown away; the
decode worker computes it again from the prompt's last position.
"""

import msgspec

from hpc_dynamo.engines.contract import Body
from hpc_dynamo.errors import RequestFailed

ASK = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


NULL = msgspec.Raw(b"null")


class NixlDialect:
    """See engines.contract.Dialect."""

    def prefill(self, body: Body) -> Body:
        # min_tokens above the one token would be refused; stream_options need a stream.
        dropped = ("min_tokens", "stream_options", "max_completion_tokens")
        kept = {k: v for k, v in body.items() if k not in dropped}
        limit = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        return kept | {limit: 1, "stream": False, "kv_transfer_params": dict(ASK)}

    def decode(self, body: Body, prefilled: Body) -> Body:
        handover = prefilled.get("kv_transfer_params")
        if handover in (None, NULL):
            what = "the prefill worker's answer carries no kv_transfer_params"
            hint = "was it started with a NIXL kv-transfer-config?"
            raise RequestFailed(what, status=502, hint=hint)
        return body | {"kv_transfer_params": handover}
