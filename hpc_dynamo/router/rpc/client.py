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

_ERRORS = {error.__name__: error for error in (AllWorkersTried, NoSuchWorker, NoWorker)}


class RemoteRouter(FramedConnection):
    """A frontend's end. `view` is the last pushed view; `closed` resolves with the connection."""

    decoder = msgspec.msgpack.Decoder(ToClient)

    def __init__(self) -> None:
        super().__init__()
        self._ids = count(1)
        self._routes = dict[int, asyncio.Future[Lease]]()
        self._calls = dict[int, asyncio.Future[bytes]]()
        self._leases = dict[int, Lease]()
        self.view = RunView()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Connect to the router. Raises OSError if none listens."""
        loop = asyncio.get_running_loop()
        _, link = await loop.create_unix_connection(cls, str(path))
        return link

    async def route(self, request: RoutingRequest) -> Lease:
        """Return a lease, see RequestRouter.route."""
        id_, granted = next(self._ids), asyncio.get_running_loop().create_future()
        if self.closed.done():
            raise _closed_error()
        self._routes[id_] = granted
        self.send(RouteCall(id_, request))
        try:
            lease: Lease = await granted
        except asyncio.CancelledError:
            self._routes.pop(id_, None)
            self._leases.pop(id_, None)
            self.send(CancelCall(id_))
            raise
        return lease

    async def explain(self, request: RoutingRequest) -> bytes:
        """Return the JSON of RoutingExplanation. Raises like RequestRouter.explain."""
        return await self._call(lambda id_: ExplainCall(id_, request))

    async def loads(self) -> bytes:
        """Return the JSON of PublishedLoads."""
        return await self._call(LoadsCall)

    async def set_sleep(self, rank: int, asleep: bool) -> bytes:
        """Put a worker to sleep or wake it; return its new state as JSON. Raises RequestFailed."""
        return await self._call(lambda id_: SleepCall(id_, rank, asleep))

    async def _call(self, make_call: Callable[[int], msgspec.Struct]) -> bytes:
        if self.closed.done():
            raise _closed_error()
        id_, result = next(self._ids), asyncio.get_running_loop().create_future()
        self._calls[id_] = result
        self.send(make_call(id_))
        try:
            return bytes(await result)
        finally:
            del self._calls[id_]

    def on_lease_event(self, lease: int, event: LeaseEvent, value: int) -> None:
        """Send an event of a lease, see LeaseListener."""
        if event is LeaseEvent.released:
            self._leases.pop(lease, None)
        self.send(LeaseUpdate(lease, event, value))

    def report_to_head(self, record: msgspec.Struct) -> None:
        """Send a record to the head."""
        self.send(ReportToHead(ENCODER.encode(record)))

    def on_message(self, content: bytes | bytearray) -> None:
        """Handle a record of the router. Raises msgspec.DecodeError."""
        match self.decoder.decode(content):
            case LeaseGranted(id=id_, prefill=prefill, decode=decode):
                self._granted(id_, prefill, decode)
            case CallFailed(id=id_) as failed:
                call = self._routes.pop(id_, None) or self._calls.get(id_)
                self._fail(call, _exception(failed))
            case CallResult(id=id_, content=content):
                result = self._calls.get(id_)
                if result and not result.done():
                    result.set_result(content)
            case LeasedWorkerLost(id=id_, rank=rank):
                if id_ in self._leases:
                    self._leases[id_].set_worker_lost(rank)
            case ViewUpdate(view=view):
                self.view = view

    def _fail(self, call: asyncio.Future[Any] | None, error: RequestFailed) -> None:
        if call and not call.done():
            call.set_exception(error)

    def _granted(self, id_: int, prefill: Target | None, decode: Target) -> None:
        call = self._routes.pop(id_, None)
        if call and not call.done():
            lease = self._leases[id_] = Lease(id_, prefill, decode, self)
            call.set_result(lease)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail all calls and mark all leases as lost."""
        if not self.closed.done():
            self.closed.set_result(None)
        calls: list[asyncio.Future[Any]] = [*self._routes.values(), *self._calls.values()]
        for call in calls:
            self._fail(call, _closed_error())
        self._routes.clear()
        for lease in list(self._leases.values()):
            lease.set_worker_lost(lease.decode.rank)


def _exception(failed: CallFailed) -> RequestFailed:
    if failed.kind in _ERRORS:
        return _ERRORS[failed.kind](failed.message)
    if failed.kind == Overloaded.__name__:
        after_s = failed.retry_after_s
        return Overloaded(failed.message, status=failed.status, retry_after_s=after_s)
    return RequestFailed(failed.message, status=failed.status)


def _closed_error() -> NoWorker:
    return NoWorker("the job is ending and accepts no more requests")
