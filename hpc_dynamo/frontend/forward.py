"""Requests that the next job of the run answers: this one's frontends pass them on.

Clients hold the URL of this job until it ends. What they send goes to the successor with their own
key, and the bytes of its answer come back as they are.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import Header, HttpClient, HttpRequest, HttpResponse, ResponseWriter

# Of this connection, not of the request (RFC 9110, 7.6.1); or written anew by the client.
HOP_BY_HOP_HEADERS = frozenset(
    (
        *("connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "x-request-id"),
    )
)
RETURNED_HEADERS = ("content-type", "cache-control", "retry-after")
ATTEMPT_HEADER = "x-hpc-dynamo-attempt"  # who passed it on: what comes back to us, we answer

log = logging.getLogger(__name__)


class SuccessorForwarder:
    """Of one frontend process of attempt `number`. `client` trusts the run's certificate."""

    def __init__(self, client: HttpClient, number: int, stats: FrontendStats) -> None:
        self._client, self._number, self._stats = client, number, stats
        self._away = dict[asyncio.Timeout, str]()  # where each that is under way was sent to

    def set_successor(self, successor: str) -> None:
        """Give up what was sent to another than this one: a node that lost power never closes its
        connections."""
        now = asyncio.get_running_loop().time()
        for timeout, url in self._away.items():
            if url != successor:
                timeout.reschedule(now)

    async def forward(
        self, url: str, request: HttpRequest, reply: ResponseWriter, own_id: str
    ) -> bool:
        """Whether `reply` has the successor's answer; if not, nothing was sent and it is ours to
        give. Raises RequestFailed where the answer broke off."""
        by = request.headers.get(ATTEMPT_HEADER, "")
        if by.isdecimal() and int(by) >= self._number:
            return False
        headers = _headers(request, own_id, self._number)
        path = f"{request.path}?{request.query}" if request.query else request.path
        try:
            with self._counted():
                async with self._while_there(url):
                    sent = self._client.send("POST", url, path, request.body, headers)
                    async with sent as answer:
                        return await _pass_back(answer, reply)
        except OSError as e:
            what = f"the job that takes over, at {url}: {e or type(e).__name__}"
            log.warning("%s", what)
            if reply.status:
                raise RequestFailed(what, status=502) from e
            return False

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._stats.forwarded += 1
        self._stats.forwarding += 1
        try:
            yield
        finally:
            self._stats.forwarding -= 1

    @asynccontextmanager
    async def _while_there(self, url: str) -> AsyncIterator[None]:
        """Ends with a TimeoutError when the successor at `url` is given up."""
        async with asyncio.timeout(None) as timeout:
            self._away[timeout] = url
            try:
                yield
            finally:
                del self._away[timeout]


def _headers(request: HttpRequest, own_id: str, number: int) -> list[Header]:
    kept = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in request.headers.items()
        if name not in HOP_BY_HOP_HEADERS and name != ATTEMPT_HEADER
    ]
    return [*kept, (b"x-request-id", own_id.encode()), (ATTEMPT_HEADER.encode(), b"%d" % number)]


async def _pass_back(answer: HttpResponse, reply: ResponseWriter) -> bool:
    """False where the successor cannot serve just now: perhaps we can."""
    if answer.status == 503:
        await answer.read()
        return False
    headers = [
        (name.encode(), answer.headers[name].encode("latin-1"))
        for name in RETURNED_HEADERS
        if name in answer.headers
    ]
    if "content-length" in answer.headers:
        reply.send(answer.status, await answer.read(), headers)
        return True
    reply.begin(answer.status, headers)
    await answer.relay(reply)
    reply.end()
    return True
