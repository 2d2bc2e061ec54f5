"""Prefill/decode protocol of SGLang: both workers at once, in a room of the prefill worker.

Source: SGLang 0.5.23, srt/disaggregation/common/conn.py and srt/managers/scheduler.py, and the
load balancer of its router (mini_lb.py): both workers get the request with `bootstrap_host`,
`bootstrap_port` and `bootstrap_room`; the decode worker asks the prefill worker's bootstrap server
for its address, and the KV cache is written to the decode worker. A worker of either role refuses a
request without a room. Requests of the four paths below can name one in their body (PDRoutingFields
of entrypoints/openai/protocol.py). The host is that of the prefill worker's own URL, and its
/server_info reports the port.
"""

import msgspec

from hpc_dynamo.engines.pd_protocol import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Body
from hpc_dynamo.errors import RequestFailed

PORT = msgspec.json.Decoder(int)
FAKE_BOOTSTRAP_HOST = "2.2.2.2"  # FAKE_BOOTSTRAP_HOST: no KV cache is moved; made for health checks

# Of how the answer is sent: the prefill worker's, one token, is thrown away.
DROPPED = frozenset({"stream", "stream_options"})


class SglangPdProtocol:
    """See engines.pd_protocol.Concurrent."""

    bootstrap_path = "/server_info"
    paths = frozenset({CHAT, COMPLETIONS, MESSAGES, RESPONSES})

    def worker_bodies(
        self, body: Body, url: str, bootstrap_info: Body, room: int
    ) -> tuple[Body, Body]:
        try:
            port = PORT.decode(bootstrap_info.get("disaggregation_bootstrap_port", b"null"))
        except msgspec.DecodeError as e:
            what = f"the prefill worker at {url} tells no disaggregation_bootstrap_port"
            hint = "was it started with --disaggregation-mode prefill?"
            raise RequestFailed(what, status=502, hint=hint) from e
        host = url.partition("://")[2].rpartition(":")[0].strip("[]")
        met = {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": room}
        prefill = {name: value for name, value in body.items() if name not in DROPPED}
        return prefill | met, body | met

    @property
    def single_worker_fields(self) -> Body:
        return {"bootstrap_host": FAKE_BOOTSTRAP_HOST, "bootstrap_room": 0}
