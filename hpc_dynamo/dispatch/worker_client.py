"""Requests to single workers. Errors name the worker."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hpc_dynamo.descriptors import OUT_OF_DESCRIPTORS
from hpc_dynamo.dispatch.execution import count, is_off
from hpc_dynamo.dispatch.refusal import refusal
from hpc_dynamo.dispatch.request_context import RequestContext
from hpc_dynamo.dispatch.response_check import BadResponse, CheckedResponse
from hpc_dynamo.engine_errors import (
    append_engine_error,
    parse_engine_error,
    unhandled_exception,
)
from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import ByteSink, HttpClient, HttpResponse
from hpc_dynamo.http.sse import EventParser
from hpc_dynamo.router import Lease, RoutingRequest, Target

# Time for one worker to finish after the other worker or the client has ended.
GRACE_S = 0.1
# Engines repeat the whole request in some errors, several times.
MAX_ERROR_BYTES = 256 << 10
NO_DESCRIPTOR = "no file descriptor is free (ulimit -n); `ulimit -Hn` is the most that you can set"
# Selects a data-parallel rank in vLLM 0.32 (entrypoints/generate/base/serving.py), SGLang 0.5.23
# (srt/entrypoints/openai/serving_base.py) and the simulator. Headers of clients are not forwarded.
DP_RANK_HEADER = b"x-data-parallel-rank"
NO_CONTEXT = RequestContext()
OBJECT_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])  # values stay unparsed


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request to an engine. `content` is sent if no field has to change.

    With `samples` > 1 it is sent as that many requests; see `execution`.
    """

    path: str
    content: bytes
    body: Body  # `content`, parsed at least one level deep
    routing: RoutingRequest
    headers: Sequence[tuple[bytes, bytes]] = ()
    samples: int = 1
    context: RequestContext = NO_CONTEXT  # same as for the client's request

    @property
    def choices(self) -> int:
        """Return the number of answers that the client gets; below 1 if it is malformed."""
        return count(self.body, "n")


class IncomingResponse(Protocol):
    """Response that is being received: an HttpResponse, or one merged from several."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes: ...

    async def relay(self, sink: ByteSink) -> None: ...


class ResponseSink(Protocol):
    """Receives the response with status 200 of the worker that decodes.

    Once `started` is True, the request cannot be repeated on another worker.
    """

    @property
    def started(self) -> bool: ...

    async def receive(self, response: IncomingResponse, lease: Lease) -> None: ...


class Handoff(Protocol):
    """Executes a request on a prefill and a decode worker."""

    async def run(
        self, lease: Lease, prefill: Target, request: EngineRequest, sink: ResponseSink
    ) -> None:
        """Raises RequestFailed, or WorkerFailed if another worker may succeed."""


class WorkerFailed(RequestFailed):
    """A worker failed; another may succeed. `reached` is False if it never got the request.

    `deaths` counts the workers that may have failed because of the request.
    """

    def __init__(
        self, rank: int, message: str, status: int, body: bytes = b"", *, reached: bool = True
    ) -> None:
        super().__init__(message, status=status, body=body)
        self.rank, self.reached, self.deaths = rank, reached, int(reached)


class WorkerLost(WorkerFailed):
    """The connection broke, the worker hung or its node was lost. It may be tried once more.

    The router avoids it until it has restarted. Then it may be the only one of its role.
    """


class UnhandledException(WorkerFailed):
    """The engine raised an exception while it read the request, and runs on. It is tried once more.
    The same exception again proves that the request is the cause."""

    def __init__(self, rank: int, message: str, body: bytes, exception: str) -> None:
        super().__init__(rank, message, 500, body)
        self.exception, self.deaths = exception, 0

    def raise_if_repeated(self, before: RequestFailed | None) -> None:
        """Raise RequestFailed with status 400 if the attempt before had the same exception."""
        if isinstance(before, UnhandledException) and before.exception == self.exception:
            raise refusal(f"the engine cannot read this request: {self.exception}") from self


class WorkerClient:
    """HTTP client for the workers of a lease."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client

    @asynccontextmanager
    async def post(
        self, lease: Lease, target: Target, request: EngineRequest, content: bytes
    ) -> AsyncIterator[CheckedResponse]:
        """Yield a worker's response with status 200.

        Raises RequestFailed for another status. Raises WorkerFailed, also while the response is
        read, if the connection fails or the response is no answer. Both name the worker.
        """
        headers = (*request.headers, *_rank_header(target))
        sent = self.client.send("POST", target.url, request.path, content, headers)
        path = request.path.partition("?")[0]
        stream = target is lease.decode and not is_off(request.body, "stream")
        try:
            async with _with_status_200(lease, target, sent) as response:
                yield CheckedResponse(response, path, stream=stream)
        except BadResponse as e:
            lease.report_connection_lost(target.rank)
            what = f"worker {target.rank} at {target.url} answered 200 {e}"
            raise WorkerFailed(target.rank, what, 502) from e

    def get(
        self, lease: Lease, target: Target, path: str
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Yield a worker's response with status 200. Raises the errors of `post`."""
        return _with_status_200(lease, target, self.client.send("GET", target.url, path))


def _rank_header(target: Target) -> tuple[tuple[bytes, bytes], ...]:
    return () if target.dp_rank is None else ((DP_RANK_HEADER, str(target.dp_rank).encode()),)


@asynccontextmanager
async def _with_status_200(
    lease: Lease, target: Target, sent: AbstractAsyncContextManager[HttpResponse]
) -> AsyncIterator[HttpResponse]:
    try:
        async with sent as response:
            if response.status != 200:
                body = await response.read_start(MAX_ERROR_BYTES)
                raise _error(target, response.status, body)
            yield response
    except OSError as e:
        if e.errno in OUT_OF_DESCRIPTORS:
            raise RequestFailed(f"{NO_DESCRIPTOR}: {e}", status=503) from e
        lease.report_connection_lost(target.rank)
        what = f"worker {target.rank} at {target.url}: {e or type(e).__name__}"
        reached = not isinstance(e, ConnectionRefusedError)
        kind = WorkerLost if isinstance(e, ConnectionError) else WorkerFailed
        raise kind(target.rank, what, 503, reached=reached) from e


def _error(target: Target, status: int, body: bytes) -> RequestFailed:
    what = append_engine_error(f"worker {target.rank} answered {status}", body)
    if status == 500 and (exception := unhandled_exception(body)):
        return UnhandledException(target.rank, what, body, exception)
    if status >= 500:
        return WorkerFailed(target.rank, what, status, body)
    return RequestFailed(what, status=status, body=body)


def stream_error(rank: int, event: bytes) -> WorkerFailed | None:
    """Return the error of an event in a stream, None if the request is its cause (a 4xx code)."""
    parsed = next(EventParser().feed(event + b"\n\n"), None)
    body = (parsed.data if parsed else None) or b""
    code = parse_engine_error(body).code
    if isinstance(code, int) and code < 500:
        return None
    what = append_engine_error(f"worker {rank} ended a stream with an error", body)
    return WorkerFailed(rank, what, 500, body)


def read_object(content: bytes, target: Target) -> Body:
    """Parse a worker's successful response. Raises WorkerFailed if it is not a JSON object."""
    try:
        return OBJECT_DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        what = f"worker {target.rank} answered 200 without a JSON object: {e}"
        raise WorkerFailed(target.rank, what, 502, content) from e


class BufferedResponse:
    """ResponseSink that keeps the whole response, for requests that are not streamed."""

    started = False

    def __init__(self) -> None:
        self.content, self.body, self.rank = b"", Body(), -1

    async def receive(self, response: IncomingResponse, lease: Lease) -> None:
        self.content = await response.read()
        self.body, self.rank = read_object(self.content, lease.decode), lease.decode.rank
