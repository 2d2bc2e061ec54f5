"""The one path of a request: choose, prefill, hand over, decode.

Shared by every front of the product. Workers join when they are ready and leave when they
die; a request that was on a worker which left is tried elsewhere by its caller.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import msgspec

from hpc_dynamo.config import Kind, Role
from hpc_dynamo.engines import Body, Dialect
from hpc_dynamo.errors import RequestFailed

# A worker whose connection broke is left alone until its agent reports it anew, or this long:
# with the usual three tries a request outlasts the time after which a silent agent is given up.
AVOID_S = 15.0

log = logging.getLogger(__name__)


@dataclass
class Member:
    """A ready worker as the dispatcher sees it."""

    rank: int
    role: Role
    url: str
    claims: int = 0  # our requests that have chosen it, under way or still in prefill
    active: int = 0  # those under way on it now
    served: int = 0
    busy_s: float = 0.0  # time with at least one request on it, over all lives of the rank
    since: float = field(default=0.0, repr=False)
    avoid_until: float = 0.0  # a connection to it broke; monotonic seconds
    open: set[asyncio.Timeout] = field(default_factory=set, repr=False)  # of our requests on it

    def enter(self) -> None:
        if not self.active:
            self.since = time.monotonic()
        self.active += 1

    def leave(self) -> None:
        self.active -= 1
        self.served += 1
        if not self.active:
            self.busy_s += time.monotonic() - self.since

    def abandon(self) -> None:
        """End our requests on it: an engine that ends, or a node that lost power, may never
        close their connections."""
        for deadline in self.open:
            deadline.reschedule(asyncio.get_running_loop().time())


@dataclass(frozen=True)
class Answer:
    """A successful answer, as the engine gave it, and where it came from."""

    body: bytes
    prefill_rank: int | None
    decode_rank: int
    prefill_s: float


class Dispatcher:
    """Sends requests to the least loaded workers. One event loop, no locks."""

    def __init__(self, kind: Kind, dialect: Dialect, session: aiohttp.ClientSession) -> None:
        self._kind, self._dialect, self._session = kind, dialect, session
        self._members: dict[int, Member] = {}
        self._former: dict[int, Member] = {}  # left; their busy time still counts
        self._changed = asyncio.Condition()

    @property
    def members(self) -> Iterable[Member]:
        return self._members.values()

    async def join(self, rank: int, role: Role, url: str) -> None:
        """A worker is ready. A rank that joins again has lost its former life's requests."""
        self.leave(rank)
        former = self._former.pop(rank, None)
        busy_s = former.busy_s if former else 0.0
        async with self._changed:
            self._members[rank] = Member(rank, role, url, busy_s=busy_s)
            self._changed.notify_all()

    def leave(self, rank: int) -> None:
        """A worker is gone, and our requests on it with it."""
        member = self._members.pop(rank, None)
        if member:
            self._former[rank] = member
            member.abandon()

    async def ready(self, roles: Iterable[Role]) -> None:
        """Until each role has a worker."""
        wanted = set(roles)
        async with self._changed:
            await self._changed.wait_for(lambda: wanted <= {m.role for m in self.members})

    async def send(self, path: str, body: Body, timeout_s: float) -> Answer:
        """Run one request to its end. Waits while a role has no ready worker.

        Raises RequestFailed with the engine's status and body, or 503/504 where an engine
        could not be reached or was silent.
        """
        try:
            async with asyncio.timeout(timeout_s):
                if self._kind is Kind.aggregated:
                    return await self._aggregated(path, body)
                return await self._disaggregated(path, body)
        except TimeoutError as e:
            what = f"no answer within {timeout_s:.0f} s"
            raise RequestFailed(what, status=504, hint="batch.request_timeout_s") from e

    async def _aggregated(self, path: str, body: Body) -> Answer:
        async with self._claim(Role.aggregated) as worker:
            answer = await self._post(worker, path, body)
        _object(answer, worker)
        return Answer(answer, None, worker.rank, 0.0)

    async def _disaggregated(self, path: str, body: Body) -> Answer:
        # The decode worker comes first: prefilled blocks are kept for a lease only, and one
        # that is read after its end has other content, which no engine notices.
        async with self._claim(Role.decode) as decode:
            began = time.monotonic()
            async with self._claim(Role.prefill) as prefill:
                answer = await self._post(prefill, path, self._dialect.prefill(body))
            prefill_s = time.monotonic() - began
            handed = self._dialect.decode(body, _object(answer, prefill))
            answer = await self._post(decode, path, handed)
        _object(answer, decode)
        return Answer(answer, prefill.rank, decode.rank, prefill_s)

    @asynccontextmanager
    async def _claim(self, role: Role) -> AsyncIterator[Member]:
        """The least loaded worker of a role, counted as ours until the end of the block."""
        worker = await self._choose(role)
        worker.claims += 1
        try:
            yield worker
        finally:
            worker.claims -= 1

    async def _choose(self, role: Role) -> Member:
        """The least loaded worker; waits for one that is ready and not avoided."""
        while True:
            of_role = [m for m in self.members if m.role is role]
            now = time.monotonic()
            usable = [m for m in of_role if m.avoid_until <= now]
            if usable:
                return min(usable, key=lambda m: (m.claims, m.served))
            wait_s = min((m.avoid_until - now for m in of_role), default=None)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s), self._changed:
                    await self._changed.wait()

    async def _post(self, worker: Member, path: str, body: Body) -> bytes:
        if self._members.get(worker.rank) is not worker:
            raise RequestFailed(f"worker {worker.rank} ({worker.role}) has left", status=503)
        worker.enter()
        data, deadline = msgspec.json.encode(body), asyncio.timeout(None)
        worker.open.add(deadline)
        try:
            async with deadline, self._session.post(worker.url + path, data=data) as answer:
                content = await answer.read()
                if answer.status != 200:
                    what = f"worker {worker.rank} ({worker.role}) answered {answer.status}"
                    raise RequestFailed(what, status=answer.status, body=content)
                return content
        except aiohttp.ClientError as e:
            worker.avoid_until = time.monotonic() + AVOID_S
            what = f"worker {worker.rank} ({worker.role}) at {worker.url}: {e or type(e).__name__}"
            raise RequestFailed(what, status=503) from e
        except TimeoutError as e:
            if not deadline.expired():
                raise
            what = f"worker {worker.rank} ({worker.role}) left with this request on it"
            raise RequestFailed(what, status=503) from e
        finally:
            worker.open.discard(deadline)
            worker.leave()


def _object(answer: bytes, worker: Member) -> Body:
    """What an engine calls a success must be a JSON object. Raises RequestFailed."""
    try:
        return msgspec.json.decode(answer, type=Body)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        what = f"worker {worker.rank} ({worker.role}) answered 200 with no JSON object: {e}"
        raise RequestFailed(what, status=502, body=answer) from e


def session(token: str) -> aiohttp.ClientSession:
    """For requests to engines: any number at a time, each bounded by its caller's deadline."""
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
    )
