"""The router's end of the unix socket: one client a frontend process.

When a connection ends, its leases are released and its asks forgotten. The socket lies in a
private folder, so both ends are of the same user.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

import msgspec

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router.router import Router
from hpc_dynamo.router.rpc.protocol import (
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
    ToServer,
    ViewUpdate,
)
from hpc_dynamo.router.rpc.view import RunView
from hpc_dynamo.router.scheduling.lease import Lease, LeaseEvent, Overloaded, RoutingRequest
from hpc_dynamo.router.scheduling.peer_loads import encode_loads
from hpc_dynamo.router.scheduling.queue import QueuedRequest

VIEW_INTERVAL_S = 1.0


class RouterServer:
    """Serves routers, by model, to frontends, and shows them `view()` on every change and every
    second.

    `told(frontend, content)` gets what frontends tell, `left(frontend)` is called when one is
    gone; a frontend is a number that is not used again. `put(rank, asleep)` does so for a client.
    """

    def __init__(
        self,
        routers: Mapping[str, Router],
        path: Path,
        view: Callable[[], RunView],
        told: Callable[[int, bytes], None],
        left: Callable[[int], None],
        put: Callable[[int, bool], Awaitable[bytes]],
    ) -> None:
        self.routers, self._path, self._view = routers, path, view
        self._changed = next(iter(routers.values())).changed
        self.on_report, self.on_disconnect, self.set_sleep, self.numbers = told, left, put, count(1)
        self.clients = set[_Client]()
        self.tasks, self._ended = asyncio.TaskGroup(), False

    async def __aenter__(self) -> Self:
        await self.tasks.__aenter__()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Client(self), str(self._path))
        self._path.chmod(0o600)
        self._view_task = self.tasks.create_task(self._push_views(), name="view")
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self._view_task.cancel()
        self.close_clients()
        await self.tasks.__aexit__(None, None, None)

    def push_view(self) -> None:
        """Push the view now."""
        view = ViewUpdate(self._view())
        for client in self.clients:
            if not client.backlogged:
                client.send(view)

    def close_clients(self) -> None:
        """End all connections, also those to come; who listens knows that the job ends."""
        self._ended = True
        for client in list(self.clients):
            client.close()

    def accept(self, client: "_Client") -> None:
        client.send(ViewUpdate(self._view()))
        if self._ended:
            client.close()
        else:
            self.clients.add(client)

    async def _push_views(self) -> None:
        while True:
            self._changed.clear()
            self.push_view()
            with suppress(TimeoutError):
                async with asyncio.timeout(VIEW_INTERVAL_S):
                    await self._changed.wait()

    def router(self, ask: RoutingRequest) -> Router:
        """Raises RequestFailed where the model has none."""
        if ask.model not in self.routers:
            raise RequestFailed(f"no workers of a model {ask.model!r} are here", status=404)
        return self.routers[ask.model]

    def cancel(self, waiting: QueuedRequest) -> None:
        self.router(waiting.request).cancel(waiting)

    def encoded_loads(self) -> bytes:
        """What we have on each worker, see loads.Published."""
        routers = tuple(self.routers.values())
        return encode_loads(routers[0].head_name, [m for router in routers for m in router.workers])


class _Client(FramedConnection):
    """One frontend, at the server's end."""

    decoder = msgspec.msgpack.Decoder(ToServer)

    def __init__(self, server: RouterServer) -> None:
        super().__init__()
        self._server, self._number = server, next(server.numbers)
        self._leases = dict[int, Lease]()  # by the frontend's own ids
        self._waiting = dict[int, QueuedRequest]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.accept(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.clients.discard(self)
        while self._waiting:
            self._server.cancel(self._waiting.popitem()[1])
        for lease in self._leases.values():
            lease.release()
        self._leases.clear()
        self._server.on_disconnect(self._number)

    def on_message(self, content: bytes | bytearray) -> None:
        match self.decoder.decode(content):
            case RouteCall(id=id_) if id_ in self._leases or id_ in self._waiting:
                raise msgspec.ValidationError(f"number {id_} is in use")
            case RouteCall(id=id_, ask=ask):
                self._ask(id_, ask)
            case LeaseUpdate(id=id_, event=note, value=value):
                self._note(id_, note, value)
            case CancelCall(id=id_):
                self._withdraw(id_)
            case ExplainCall(id=id_, ask=ask):
                self._explain(id_, ask)
            case LoadsCall(id=id_):
                self.send(CallResult(id_, self._server.encoded_loads()))
            case SleepCall(id=id_, rank=rank, asleep=asleep):
                self._server.tasks.create_task(self._put(id_, rank, asleep))
            case ReportToHead(content=told):
                self._server.on_report(self._number, told)

    def _ask(self, id_: int, ask: RoutingRequest) -> None:
        try:
            router = self._server.router(ask)
            lease = router.try_route(ask)
        except RequestFailed as e:
            self.send(_denial(id_, e))
            return
        if lease:
            self._grant(id_, lease)
        else:
            waiting = self._waiting[id_] = router.enqueue(ask)
            waiting.lease.add_done_callback(lambda granted: self._waited(id_, granted))

    def _explain(self, id_: int, ask: RoutingRequest) -> None:
        try:
            why = self._server.router(ask).explain(ask)
        except RequestFailed as e:
            self.send(_denial(id_, e))
        else:
            self.send(CallResult(id_, msgspec.json.encode(why)))

    async def _put(self, id_: int, rank: int, asleep: bool) -> None:
        try:
            said = await self._server.set_sleep(rank, asleep)
        except RequestFailed as e:
            self.send(_denial(id_, e))
        else:
            self.send(CallResult(id_, said))

    def _waited(self, id_: int, granted: asyncio.Future[Lease]) -> None:
        if self._waiting.pop(id_, None) is None:
            return  # withdrawn
        try:
            self._grant(id_, granted.result())
        except RequestFailed as e:
            self.send(_denial(id_, e))

    def _grant(self, id_: int, lease: Lease) -> None:
        self._leases[id_] = lease
        lease.worker_lost.add_done_callback(lambda lost: self._lose(id_, lost))
        self.send(LeaseGranted(id_, lease.prefill, lease.decode))

    def _lose(self, id_: int, lost: asyncio.Future[int]) -> None:
        if id_ in self._leases and not lost.cancelled():
            self.send(LeasedWorkerLost(id_, lost.result()))

    def _note(self, id_: int, note: LeaseEvent, value: int) -> None:
        lease = self._leases.get(id_)
        if lease is None:
            return
        if note is LeaseEvent.released:
            del self._leases[id_]
            lease.release()
        else:
            lease.report(note, value)

    def _withdraw(self, id_: int) -> None:
        waiting = self._waiting.pop(id_, None)
        if waiting:
            self._server.cancel(waiting)
        else:
            self._note(id_, LeaseEvent.released, 0)


def _denial(id_: int, error: RequestFailed) -> CallFailed:
    after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    return CallFailed(id_, type(error).__name__, error.message, error.status, after_s)
