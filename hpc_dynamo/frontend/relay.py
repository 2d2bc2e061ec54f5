"""Takes an engine's answer to the client: streams piece by piece, the rest whole."""

import time

import msgspec

from hpc_dynamo.dispatch import IncomingResponse
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import ResponseWriter
from hpc_dynamo.router import Lease

CHUNKS_PER_REPORT = 64  # a note to the router costs as much as passing on some pieces


class ResponseRelay:
    """See dispatch.Taker. Bytes pass as they came."""

    def __init__(self, reply: ResponseWriter, stats: FrontendStats) -> None:
        self._reply, self._stats = reply, stats
        self._began = self._last = time.monotonic()
        self._type = b"application/json"
        self._pieces = 0  # that the router has not been told of
        self._lease: Lease

    @property
    def started(self) -> bool:
        return self._reply.status != 0

    async def receive(self, answer: IncomingResponse, lease: Lease) -> None:
        self._lease = lease
        self._type = answer.headers.get("content-type", "application/json").encode()
        if self._type.startswith(b"text/event-stream"):
            await answer.relay(self)
            if not self.started:
                self._begin()
            if self._pieces:
                lease.report_progress(self._pieces)
            self._reply.end()
        else:
            content = await answer.read()
            self._stats.ttft.observe(time.monotonic() - self._began)
            if tokens := _generated(content):
                lease.report_progress(tokens)
            self._reply.send(200, content, [(b"content-type", self._type)])

    def write(self, data: bytes) -> None:
        """A piece of the stream, as the engine's socket gave it."""
        now = time.monotonic()
        if self._reply.status:
            self._stats.itl.observe(now - self._last)
            self._pieces += 1  # a token each, as long as the reader keeps up
            if self._pieces == CHUNKS_PER_REPORT:
                self._lease.report_progress(self._pieces)
                self._pieces = 0
        else:
            self._begin()
            self._lease.report_first_token()
            self._stats.ttft.observe(now - self._began)
        self._last = now
        self._reply.write(data)

    @property
    def congested(self) -> bool:
        return self._reply.congested

    async def drain(self) -> None:
        await self._reply.drain()

    def _begin(self) -> None:
        self._reply.begin(200, [(b"content-type", self._type), (b"cache-control", b"no-cache")])


class _Usage(msgspec.Struct):
    completion_tokens: int = 0
    output_tokens: int = 0  # as /v1/responses and /v1/messages call them


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


def _generated(content: bytes) -> int:
    """Tokens of a whole answer; 0 where it does not tell."""
    try:
        usage = _ANSWER.decode(content).usage
    except (msgspec.DecodeError, RecursionError):
        return 0
    return usage.completion_tokens or usage.output_tokens if usage else 0
