"""Prefill/decode protocol of SGLang: both workers get a request at the same time.

Each request has `bootstrap_host`, `bootstrap_port` and `bootstrap_room`. The decode worker asks the
bootstrap server of the prefill worker for its address, and the KV cache is written to the decode
worker. A worker of either role refuses a request without a room. The host is that of the prefill
worker's URL; its /server_info reports the port.

SGLang looks every 4 s whether the client of a request has left. /abort_request ends a request at
once, by the id in its field `rid`. Prompt i of a list is a request of its own, `RID_i`. Responses
have the id in `request_id`, and messages take none.

Source: SGLang 0.5.23, srt/disaggregation/common/conn.py, srt/managers/scheduler.py, the load
balancer of its router (mini_lb.py), and PDRoutingFields of entrypoints/openai/protocol.py;
for ids srt/managers/tokenizer_manager.py (abort_request), io_struct.py (_normalize_rid) and
entrypoints/openai/serving_responses.py.
"""

import msgspec

from hpc_dynamo.engines.pd_protocol import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    Body,
    field_value,
)
from hpc_dynamo.errors import RequestFailed

PORT = msgspec.json.Decoder(int)
FAKE_BOOTSTRAP_HOST = "2.2.2.2"  # no KV cache is moved; made for health checks

# Removed from prefill requests: the prefill worker's answer, one token, is discarded.
DROPPED = frozenset({"stream", "stream_options"})

REQUEST_ID = "rid"
# Fields with the id of a request, and the beginning of the id. /v1/messages has none.
REQUEST_IDS = {
    CHAT: (REQUEST_ID, ""),
    COMPLETIONS: (REQUEST_ID, ""),
    RESPONSES: ("request_id", "resp_"),
}


class SglangPdProtocol:
    """Implements engines.pd_protocol.ConcurrentProtocol."""

    bootstrap_path = "/server_info"
    abort_path = "/abort_request"
    paths = frozenset({CHAT, COMPLETIONS, MESSAGES, RESPONSES})

    def worker_bodies(
        self, body: Body, url: str, bootstrap_info: Body, room: int
    ) -> tuple[Body, Body]:
        """See ConcurrentProtocol. The host of the bootstrap server is that of the URL."""
        try:
            port = PORT.decode(bootstrap_info.get("disaggregation_bootstrap_port", b"null"))
        except msgspec.DecodeError as e:
            what = f"the prefill worker at {url} reports no disaggregation_bootstrap_port"
            hint = "check that it runs with --disaggregation-mode prefill"
            raise RequestFailed(what, status=502, hint=hint) from e
        host = url.partition("://")[2].rpartition(":")[0].strip("[]")
        bootstrap = {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": room}
        prefill = {name: value for name, value in body.items() if name not in DROPPED}
        return prefill | bootstrap, body | bootstrap

    @property
    def single_worker_fields(self) -> Body:
        return {"bootstrap_host": FAKE_BOOTSTRAP_HOST, "bootstrap_room": 0}

    def with_request_id(self, path: str, body: Body, request_id: str) -> Body | None:
        if path not in REQUEST_IDS:
            return None
        field, start = REQUEST_IDS[path]
        return body | {field: start + request_id}

    def abort_bodies(self, path: str, body: Body) -> list[Body]:
        request_id: str = body[REQUEST_IDS[path][0]]
        prompt = field_value(body.get("prompt")) if path == COMPLETIONS else None
        ids = [request_id]
        if isinstance(prompt, list | tuple) and prompt and not isinstance(prompt[0], int):
            ids = [f"{request_id}_{i}" for i in range(len(prompt))]
        return [{REQUEST_ID: each} for each in ids]
