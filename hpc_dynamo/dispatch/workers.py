"""One worker is asked, and its failures get its name."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hpc_dynamo.engine_errors import with_engine_text
from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.http import Answer, Client, Sink
from hpc_dynamo.router import Lease, RoutingRequest, Target

LAST_MOMENT_S = 0.1  # what ends so soon after the other worker, or its client, is let to its end
OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])  # values stay as the bytes that they were


@dataclass(frozen=True, slots=True)
class Work:
    """One request. `body` is `content` read at least one level deep; `content` is sent if nothing
    in it has to change. With `samples` > 1 it is sent as that many requests; see `execution`."""

    path: str
    content: bytes
    body: Body
    ask: RoutingRequest
    headers: Sequence[tuple[bytes, bytes]] = ()
    samples: int = 1


class Incoming(Protocol):
    """Answer that is being received: http.Answer, or one merged from several."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def read(self) -> bytes: ...

    async def relay(self, sink: Sink) -> None: ...


class Taker(Protocol):
    """Takes in the answer of the worker that decodes; a status other than 200 never comes
    here. Once `begun`, no other worker can answer in its place."""

    @property
    def begun(self) -> bool: ...

    async def take(self, answer: Incoming, lease: Lease) -> None: ...


class Sharing(Protocol):
    """How two workers do one request together."""

    async def run(self, lease: Lease, prefill: Target, work: Work, taker: Taker) -> None:
        """Raises RequestFailed, Broken where another worker may do better."""


class Broken(RequestFailed):
    """A worker failed; another may succeed. `reached` is False if it never got the request."""

    def __init__(
        self, rank: int, message: str, status: int, body: bytes = b"", *, reached: bool = True
    ) -> None:
        super().__init__(message, status=status, body=body)
        self.rank, self.reached = rank, reached


class Workers:
    """Those that leases name, by HTTP."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def post(
        self, lease: Lease, target: Target, work: Work, content: bytes
    ) -> AbstractAsyncContextManager[Answer]:
        """A worker's answer with status 200. Its failures, also those on the way through the
        answer, become errors that name it."""
        sent = self.client.send("POST", target.url, work.path, content, work.headers)
        return _good(lease, target, sent)

    def get(self, lease: Lease, target: Target, path: str) -> AbstractAsyncContextManager[Answer]:
        """As `post`."""
        return _good(lease, target, self.client.send("GET", target.url, path))


@asynccontextmanager
async def _good(
    lease: Lease, target: Target, sent: AbstractAsyncContextManager[Answer]
) -> AsyncIterator[Answer]:
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
        raise Broken(target.rank, what, 503, reached=reached) from e


def _refused(target: Target, what: str, status: int, body: bytes) -> RequestFailed:
    what = with_engine_text(what, body)
    if status >= 500:
        return Broken(target.rank, what, status, body)
    return RequestFailed(what, status=status, body=body)


def read_object(content: bytes, target: Target) -> Body:
    """What an engine calls a success must be a JSON object. Raises RequestFailed."""
    try:
        return OBJECT.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        what = f"worker {target.rank} answered 200 with no JSON object: {e}"
        raise Broken(target.rank, what, 502, content) from e


class Whole:
    """Taker that keeps the whole answer, for requests that are not streamed."""

    begun = False

    def __init__(self) -> None:
        self.content, self.body, self.rank = b"", Body(), -1

    async def take(self, answer: Incoming, lease: Lease) -> None:
        self.content = await answer.read()
        self.body, self.rank = read_object(self.content, lease.decode), lease.decode.rank
