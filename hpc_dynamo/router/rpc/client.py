"""A frontend's end of the unix socket to the router."""

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Self

import msgspec

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router.rpc.protocol import (
    ENCODER,
    CallFailed,
    CallResult,
    CancelCall,
    ExplainCall,
    FramedConnection,
    LeasedWorkerLost,
    LeaseGranted,
    LeaseUpdate,
    LoadsCall,
    ReportToHead,
    RouteCall,
    SleepCall,
    ToClient,
    ViewUpdate,
)
from hpc_dynamo.router.rpc.view import RunView
from hpc_dynamo.router.scheduling.lease import (
    AllWorkersTried,
    Lease,
    LeaseEvent,
    NoSuchWorker,
    NoWorker,
    Overloaded,
    RoutingRequest,
    Target,
)


class RemoteRouter(FramedConnection):
    """A frontend's end. `view` is the last that the head showed; `closed` ends with the link."""

    decoder = msgspec.msgpack.Decoder(ToClient)

    def __init__(self) -> None:
        super().__init__()
        self._ids = count(1)
        self._pending_routes = dict[int, asyncio.Future[Lease]]()
        self._pending_calls = dict[int, asyncio.Future[bytes]]()
        self._leases = dict[int, Lease]()
        self.view = RunView()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Raises OSError where no router listens."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(cls, str(path))
        return link

    async def route(self, ask: RoutingRequest) -> Lease:
        """See Router.route."""
        id_, granted = next(self._ids), asyncio.get_running_loop().create_future()
        if self.closed.done():
            raise _ended()
        self._pending_routes[id_] = granted
        self.send(RouteCall(id_, ask))
        try:
            lease: Lease = await granted
        except asyncio.CancelledError:
            self._pending_routes.pop(id_, None)
            self._leases.pop(id_, None)
            self.send(CancelCall(id_))
            raise
        return lease

    async def explain(self, ask: RoutingRequest) -> bytes:
        """JSON of router.why.Why: what `route` would do now. Raises like Router.explain."""
        return await self._call(lambda id_: ExplainCall(id_, ask))

    async def loads(self) -> bytes:
        """JSON of router.loads.Published."""
        return await self._call(LoadsCall)

    async def set_sleep(self, rank: int, asleep: bool) -> bytes:
        """A worker to sleep, or awake: JSON of how it is then. Raises RequestFailed."""
        return await self._call(lambda id_: SleepCall(id_, rank, asleep))

    async def _call(self, asked: Callable[[int], msgspec.Struct]) -> bytes:
        if self.closed.done():
            raise _ended()
        id_, explained = next(self._ids), asyncio.get_running_loop().create_future()
        self._pending_calls[id_] = explained
        self.send(asked(id_))
        try:
            return bytes(await explained)
        finally:
            del self._pending_calls[id_]

    def on_lease_event(self, lease: int, note: LeaseEvent, value: int) -> None:
        """See lease.Notes."""
        if note is LeaseEvent.released:
            self._leases.pop(lease, None)
        self.send(LeaseUpdate(lease, note, value))

    def report_to_head(self, record: msgspec.Struct) -> None:
        """Something for the head that the router does not look at."""
        self.send(ReportToHead(ENCODER.encode(record)))

    def on_message(self, content: bytes | bytearray) -> None:
        match self.decoder.decode(content):
            case LeaseGranted(id=id_, prefill=prefill, decode=decode):
                self._granted(id_, prefill, decode)
            case CallFailed(id=id_) as denied:
                self._deny(
                    self._pending_routes.pop(id_, None) or self._pending_calls.get(id_),
                    _error(denied),
                )
            case CallResult(id=id_, content=content):
                explained = self._pending_calls.get(id_)
                if explained and not explained.done():
                    explained.set_result(content)
            case LeasedWorkerLost(id=id_, rank=rank):
                if id_ in self._leases:
                    self._leases[id_].set_worker_lost(rank)
            case ViewUpdate(view=view):
                self.view = view

    def _deny(self, asked: asyncio.Future[Any] | None, error: RequestFailed) -> None:
        if asked and not asked.done():
            asked.set_exception(error)

    def _granted(self, id_: int, prefill: Target | None, decode: Target) -> None:
        asked = self._pending_routes.pop(id_, None)
        if asked and not asked.done():
            lease = self._leases[id_] = Lease(id_, prefill, decode, self)
            asked.set_result(lease)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        for asked in self._pending_routes.values():
            self._deny(asked, _ended())
        for explained in self._pending_calls.values():
            self._deny(explained, _ended())
        self._pending_routes.clear()
        for lease in list(self._leases.values()):
            lease.set_worker_lost(lease.decode.rank)


def _error(denied: CallFailed) -> RequestFailed:
    match denied.kind:
        case "AllWorkersTried":
            return AllWorkersTried(denied.message)
        case "NoSuchWorker":
            return NoSuchWorker(denied.message)
        case "NoWorker":
            return NoWorker(denied.message)
        case "Overloaded":
            after_s = denied.retry_after_s
            return Overloaded(denied.message, status=denied.status, retry_after_s=after_s)
    return RequestFailed(denied.message, status=denied.status)


def _ended() -> NoWorker:
    return NoWorker("the job is ending: its head takes no more requests")
