"""Forwards requests to the next job of the run, for clients that still use this job's URL.

A request is sent to the successor with the client's own key, and the response comes back unchanged.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend.relay import MAX_WHOLE_BYTES, length
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import Header, HttpClient, HttpRequest, HttpResponse, ResponseWriter

# Headers of this connection (RFC 9110, 7.6.1), and headers that are set again.
HOP_BY_HOP_HEADERS = frozenset(
    (
        *("connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization"),
        *("proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "x-request-id"),
    )
)
RETURNED_HEADERS = ("content-type", "cache-control", "retry-after")
# Number of the attempt that forwarded a request. A request that comes back is not forwarded again.
ATTEMPT_HEADER = "x-hpc-dynamo-attempt"
MAX_DIGITS = 10

log = logging.getLogger(__name__)


class SuccessorForwarder:
    """Forwards requests of one frontend process of attempt `number`.

    `client` trusts the certificate of the run.
    """

    def __init__(self, client: HttpClient, number: int, stats: FrontendStats) -> None:
        self._client, self._number, self._stats = client, number, stats
        self._in_progress = dict[asyncio.Timeout, str]()  # successor's URL of each request

    def set_successor(self, url: str) -> None:
        """Abort requests to another successor: a node that loses power closes no connections."""
        now = asyncio.get_running_loop().time()
        for timeout, target in self._in_progress.items():
            if target != url:
                timeout.reschedule(now)

    async def forward(
        self, url: str, request: HttpRequest, response: ResponseWriter, request_id: str
    ) -> bool:
        """Forward a request; return False if nothing was sent and this job must answer.

        Raises RequestFailed if the response was interrupted.
        """
        sender = request.headers.get(ATTEMPT_HEADER, "")[:MAX_DIGITS]
        if sender.isdecimal() and int(sender) >= self._number:
            return False
        headers = _headers(request, request_id, self._number)
        path = f"{request.path}?{request.query}" if request.query else request.path
        try:
            async with self._tracked(url):
                sent = self._client.send("POST", url, path, request.body, headers)
                async with sent as answer:
                    return await _relay(answer, response)
        except OSError as e:
            what = f"the next job of this run, at {url}: {e or type(e).__name__}"
            log.warning("%s", what)
            if response.status:
                raise RequestFailed(what, status=502) from e
            return False

    @asynccontextmanager
    async def _tracked(self, url: str) -> AsyncIterator[None]:
        """Count a request; raise TimeoutError in it when `url` is no longer the successor."""
        self._stats.forwarded += 1
        self._stats.forwarding += 1
        try:
            async with asyncio.timeout(None) as timeout:
                self._in_progress[timeout] = url
                try:
                    yield
                finally:
                    del self._in_progress[timeout]
        finally:
            self._stats.forwarding -= 1


def _headers(request: HttpRequest, request_id: str, number: int) -> list[Header]:
    kept = [
        (name.encode("latin-1"), value.encode("latin-1"))
        for name, value in request.headers.items()
        if name not in HOP_BY_HOP_HEADERS and name != ATTEMPT_HEADER
    ]
    attempt = (ATTEMPT_HEADER.encode(), b"%d" % number)
    return [*kept, (b"x-request-id", request_id.encode()), attempt]


async def _relay(answer: HttpResponse, response: ResponseWriter) -> bool:
    """Relay the successor's response. Return False if it cannot serve now: this job may."""
    if answer.status == 503:
        await answer.read()
        return False
    headers = [
        (name.encode(), answer.headers[name].encode("latin-1"))
        for name in RETURNED_HEADERS
        if name in answer.headers
    ]
    if "content-length" in answer.headers and length(answer.headers) <= MAX_WHOLE_BYTES:
        response.send(answer.status, await answer.read(), headers)
        return True
    response.begin(answer.status, headers)
    await answer.relay(response)
    response.end()
    return True
