"""Passes requests on, as they came, to the job that goes on after this one."""

import logging

from hpc_dynamo.http import Client, Reply, Request

FORWARDED = "x-hpc-dynamo-forwarded"  # once is enough: no two jobs send one to and fro
HOP = frozenset({"host", "connection", "content-length", "transfer-encoding", "expect", "te"})
KEPT = ("content-type", "cache-control", "retry-after")  # of an answer; its id is ours

log = logging.getLogger(__name__)


class Forwarder:
    """`client` adds no key of its own: the endpoints of a run have one, which the request has."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, request: Request, reply: Reply, own_id: str, url: str) -> bool:
        """Whether it was answered; False, with nothing sent, where nobody is there or it has been
        forwarded already. Raises OSError where the answer breaks off."""
        if FORWARDED in request.headers:
            return False
        path = f"{request.path}?{request.query}" if request.query else request.path
        kept = {n: v for n, v in request.headers.items() if n not in HOP}
        kept |= {"x-request-id": own_id, FORWARDED: "1"}
        headers = [(name.encode(), value.encode("latin-1")) for name, value in kept.items()]
        try:
            sent = self._client.send(request.method, url, path, request.body, headers)
            async with sent as answer:
                told = answer.headers
                got = [(name.encode(), told[name].encode()) for name in KEPT if name in told]
                if told.get("content-type", "").startswith("text/event-stream"):
                    reply.begin(answer.status, got)
                    await answer.relay(reply)
                    reply.end()
                else:
                    reply.send(answer.status, await answer.read(), got)
        except OSError as e:
            if reply.status:
                raise
            log.warning("the successor at %s cannot be reached: %s", url, e)
            return False
        return True
