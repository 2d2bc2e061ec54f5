"""The router's end of the unix socket, with one client per frontend process."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

import msgspec

from hpc_dynamo.defects import contain_defects
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router.router import RequestRouter
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

log = logging.getLogger(__name__)


class RouterServer:
    """Serves the routers of all models to the frontends, and pushes `view()` to them.

    The view is pushed on every change and every VIEW_INTERVAL_S. `on_report(frontend, content)`
    receives the reports of a frontend, `on_disconnect(frontend)` is called when it disconnects.
    Frontends have numbers that are not reused. `set_sleep(rank, asleep)` executes a SleepCall.
    """

    def __init__(
        self,
        routers: Mapping[str, RequestRouter],
        path: Path,
        view: Callable[[], RunView],
        on_report: Callable[[int, bytes], None],
        on_disconnect: Callable[[int], None],
        set_sleep: Callable[[int, bool], Awaitable[bytes]],
    ) -> None:
        self.routers, self._path, self._view = routers, path, view
        self._changed = next(iter(routers.values())).changed
        self.on_report, self.on_disconnect, self.set_sleep = on_report, on_disconnect, set_sleep
        self.numbers = count(1)
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
        """Push the view to all clients now."""
        view = ViewUpdate(self._view())
        for client in self.clients:
            if not client.backlogged:
                client.send(view)

    def close_clients(self) -> None:
        """Close all connections, also later ones: the frontends then know that the job ends."""
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

    def router(self, request: RoutingRequest) -> RequestRouter:
        """Return the router of the request's model. Raises RequestFailed without one."""
        if request.model not in self.routers:
            raise RequestFailed(f"model {request.model!r} is not served here", status=404)
        return self.routers[request.model]

    def cancel(self, queued: QueuedRequest) -> None:
        self.router(queued.request).cancel(queued)

    def encoded_loads(self) -> bytes:
        """Return the JSON of PublishedLoads."""
        routers = tuple(self.routers.values())
        workers = [worker for router in routers for worker in router.workers]
        return encode_loads(routers[0].head_name, workers)


class _Client(FramedConnection):
    """The server's end of one connection."""

    decoder = msgspec.msgpack.Decoder(ToServer)

    def __init__(self, server: RouterServer) -> None:
        super().__init__()
        self._server, self._number = server, next(server.numbers)
        self._leases = dict[int, Lease]()  # by call id
        self._queued = dict[int, QueuedRequest]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.accept(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.clients.discard(self)
        while self._queued:
            self._server.cancel(self._queued.popitem()[1])
        for lease in self._leases.values():
            lease.release()
        self._leases.clear()
        self._server.on_disconnect(self._number)

    def on_message(self, content: bytes | bytearray) -> None:
        """Handle a record of the frontend. Raises msgspec.DecodeError."""
        try:
            message = self.decoder.decode(content)
        except msgspec.ValidationError as e:
            self._reject(content, e)
            return
        then = None
        if isinstance(message, RouteCall | ExplainCall | LoadsCall):
            then = partial(self._send_defect, message.id)
        with contain_defects(log, message, passed=msgspec.DecodeError, then=then):
            self._dispatch(message)

    def _send_defect(self, id_: int) -> None:
        self.send(_internal_error(id_))

    def _reject(self, content: bytes | bytearray, error: msgspec.ValidationError) -> None:
        """Answer a call with an invalid request. Raises `error` for any other record."""
        match msgspec.msgpack.decode(content):
            case [RouteCall.__struct_config__.tag | ExplainCall.__struct_config__.tag, int(id_), _]:
                self.send(CallFailed(id_, "", f"invalid routing request: {error}", 400))
            case _:
                raise error

    def _dispatch(self, message: ToServer) -> None:
        match message:
            case RouteCall(id=id_) if id_ in self._leases or id_ in self._queued:
                raise msgspec.ValidationError(f"number {id_} is in use")
            case RouteCall(id=id_, request=request):
                self._route(id_, request)
            case LeaseUpdate(id=id_, event=event, value=value):
                self._update(id_, event, value)
            case CancelCall(id=id_):
                self._cancel(id_)
            case ExplainCall(id=id_, request=request):
                self._explain(id_, request)
            case LoadsCall(id=id_):
                self.send(CallResult(id_, self._server.encoded_loads()))
            case SleepCall(id=id_, rank=rank, asleep=asleep):
                self._server.tasks.create_task(self._set_sleep(id_, rank, asleep))
            case ReportToHead(content=content):
                self._server.on_report(self._number, content)

    def _route(self, id_: int, request: RoutingRequest) -> None:
        try:
            router = self._server.router(request)
            lease = router.try_route(request)
        except RequestFailed as e:
            self.send(_failure(id_, e))
            return
        if lease:
            self._grant(id_, lease)
        else:
            queued = self._queued[id_] = router.enqueue(request)
            queued.lease.add_done_callback(lambda granted: self._on_granted(id_, granted))

    def _explain(self, id_: int, request: RoutingRequest) -> None:
        try:
            explanation = self._server.router(request).explain(request)
        except RequestFailed as e:
            self.send(_failure(id_, e))
        else:
            self.send(CallResult(id_, msgspec.json.encode(explanation)))

    async def _set_sleep(self, id_: int, rank: int, asleep: bool) -> None:
        what = f"sleep mode of worker {rank}"
        with contain_defects(log, what, then=partial(self._send_defect, id_)):
            try:
                result = await self._server.set_sleep(rank, asleep)
            except RequestFailed as e:
                self.send(_failure(id_, e))
            else:
                self.send(CallResult(id_, result))

    def _on_granted(self, id_: int, granted: asyncio.Future[Lease]) -> None:
        if self._queued.pop(id_, None) is None:
            return  # cancelled
        with contain_defects(log, "a queued request", then=partial(self._send_defect, id_)):
            try:
                self._grant(id_, granted.result())
            except RequestFailed as e:
                self.send(_failure(id_, e))

    def _grant(self, id_: int, lease: Lease) -> None:
        self._leases[id_] = lease
        lease.worker_lost.add_done_callback(lambda lost: self._on_worker_lost(id_, lost))
        self.send(LeaseGranted(id_, lease.prefill, lease.decode))

    def _on_worker_lost(self, id_: int, lost: asyncio.Future[int]) -> None:
        if id_ in self._leases and not lost.cancelled():
            self.send(LeasedWorkerLost(id_, lost.result()))

    def _update(self, id_: int, event: LeaseEvent, value: int) -> None:
        lease = self._leases.get(id_)
        if lease is None:
            return
        if event is LeaseEvent.released:
            del self._leases[id_]
            lease.release()
        else:
            lease.report(event, value)

    def _cancel(self, id_: int) -> None:
        queued = self._queued.pop(id_, None)
        if queued:
            self._server.cancel(queued)
        else:
            self._update(id_, LeaseEvent.released, 0)


def _internal_error(id_: int) -> CallFailed:
    return CallFailed(id_, "", "internal error of the router; see the head's log", 500)


def _failure(id_: int, error: RequestFailed) -> CallFailed:
    after_s = error.retry_after_s if isinstance(error, Overloaded) else 0.0
    return CallFailed(id_, type(error).__name__, error.message, error.status, after_s)
