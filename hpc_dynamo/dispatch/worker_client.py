"""One worker is asked, and its failures get its name."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hpc_dynamo.engine_errors import append_engine_error
from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import ByteSink, HttpClient, HttpResponse
from hpc_dynamo.router import Lease, RoutingRequest, Target

GRACE_S = 0.1  # what ends so soon after the other worker, or its client, is let to its end
OBJECT_DECODER = msgspec.json.Decoder(
    dict[str, msgspec.Raw]
)  # values stay as the bytes that they were


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request. `body` is `content` read at least one level deep; `content` is sent if nothing
    in it has to change. With `samples` > 1 it is sent as that many requests; see `execution`."""

    path: str
    content: bytes
    body: Body
    routing: RoutingRequest
    headers: Sequence[tuple[bytes, bytes]] = ()
    samples: int = 1


class IncomingResponse(Protocol):
    """Answer that is being received: http.Answer, or one merged from several."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes: ...

    async def relay(self, sink: ByteSink) -> None: ...


class ResponseSink(Protocol):
    """Takes in the answer of the worker that decodes; a status other than 200 never comes
    here. Once `begun`, no other worker can answer in its place."""

    @property
    def started(self) -> bool: ...

    async def receive(self, answer: IncomingResponse, lease: Lease) -> None: ...


class Handoff(Protocol):
    """How two workers do one request together."""

    async def run(
        self, lease: Lease, prefill: Target, work: EngineRequest, taker: ResponseSink
    ) -> None:
        """Raises RequestFailed, Broken where another worker may do better."""


class WorkerFailed(RequestFailed):
    """A worker failed; another may succeed. `reached` is False if it never got the request."""

    def __init__(
        self, rank: int, message: str, status: int, body: bytes = b"", *, reached: bool = True
    ) -> None:
        super().__init__(message, status=status, body=body)
        self.rank, self.reached = rank, reached


class WorkerClient:
    """Those that leases name, by HTTP."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client

    def post(
        self, lease: Lease, target: Target, work: EngineRequest, content: bytes
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """A worker's answer with status 200. Its failures, also those on the way through the
        answer, become errors that name it."""
        sent = self.client.send("POST", target.url, work.path, content, work.headers)
        return _good(lease, target, sent)

    def get(
        self, lease: Lease, target: Target, path: str
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """As `post`."""
        return _good(lease, target, self.client.send("GET", target.url, path))


@asynccontextmanager
async def _good(
    lease: Lease, target: Target, sent: AbstractAsyncContextManager[HttpResponse]
) -> AsyncIterator[HttpResponse]:
    try:
        async with sent as answer:
            if answer.status != 200:
                what = f"worker {target.rank} answered {answer.status}"
                raise _refused(target, what, answer.status, await answer.read())
            yield answer
    except OSError as e:
        lease.report_connection_lost(target.rank)
        what = f"worker {target.rank} at {target.url}: {e or type(e).__name__}"
        reached = not isinstance(e, ConnectionRefusedError)
        raise WorkerFailed(target.rank, what, 503, reached=reached) from e


def _refused(target: Target, what: str, status: int, body: bytes) -> RequestFailed:
    what = append_engine_error(what, body)
    if status >= 500:
        return WorkerFailed(target.rank, what, status, body)
    return RequestFailed(what, status=status, body=body)


def read_object(content: bytes, target: Target) -> Body:
    """What an engine calls a success must be a JSON object. Raises RequestFailed."""
    try:
        return OBJECT_DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        what = f"worker {target.rank} answered 200 with no JSON object: {e}"
        raise WorkerFailed(target.rank, what, 502, content) from e


class BufferedResponse:
    """Taker that keeps the whole answer, for requests that are not streamed."""

    started = False

    def __init__(self) -> None:
        self.content, self.body, self.rank = b"", Body(), -1

    async def receive(self, answer: IncomingResponse, lease: Lease) -> None:
        self.content = await answer.read()
        self.body, self.rank = read_object(self.content, lease.decode), lease.decode.rank
